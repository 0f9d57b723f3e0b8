"""qtool as a process: what it imports, and how signals end it."""

import os
import pty
import signal
import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "yaml", "PIL")
SLOW_RUN = """
import sys, time, types
pipeline = types.ModuleType("qtool.pipeline.run")
def run_ptq(recipe, out, options):
    options.progress("calibrate", 0, 10)
    print("started", flush=True)
    time.sleep(60)
pipeline.run_ptq = run_ptq
sys.modules["qtool.pipeline.run"] = pipeline
from dataclasses import replace
from qtool.recipe.registry import KINDS
KINDS["ptq"] = replace(KINDS["ptq"], table=dict)
from qtool.cli.main import main
sys.argv = ["qtool", "ptq", "--model", "net.onnx", "--data", "train"]
main()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/x.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("words", [["--help"], ["ptq", "--help"], ["--version"], ["quantise"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\n"
        "from qtool.cli.main import main\n"
        f"sys.argv = ['qtool', *{words}]\n"
        "try:\n    main()\n"
        f"finally:\n    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)\n"
    )
    assert python("-c", code).stderr.splitlines()[-1] == "[]"


def test_the_import_check_can_fail():
    code = f"import numpy, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert python("-c", code).stdout == "['numpy']\n"


def test_the_shell_completes_commands():
    code = "import sys; sys.argv = ['qtool']; from qtool.cli.main import main; main()"
    words = {"_QTOOL_COMPLETE": "complete_bash", "COMP_WORDS": "qtool p", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | words
    )
    assert done.stdout.split() == ["ptq"]


def test_python_m_qtool_works():
    result = python("-m", "qtool", "--version")
    assert (result.returncode, result.stdout) == (0, "qtool 0.1.0\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_with_130(number):
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("qtool: interrupted: the same command goes on")
    assert "Traceback" not in errors


def on_a_terminal(environment: dict[str, str]) -> str:
    """What a run with notes draws when stderr is a terminal."""
    code = SLOW_RUN.replace("time.sleep(60)", "raise KeyboardInterrupt").replace(
        'progress("calibrate", 0, 10)', 'progress("calibrate", 4, 10, "a note")'
    )
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=other,
        env=os.environ | {"TERM": "xterm-256color"} | environment,
    )
    os.close(other)
    drawn = b""
    while chunk := _read(main):
        drawn += chunk
    os.close(main)
    assert process.wait(timeout=60) == 130
    return drawn.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports the other end's close as EIO
        return b""


def test_a_terminal_gets_bars_with_an_eta():
    drawn = on_a_terminal({"NO_COLOR": ""})
    assert "4/10" in drawn
    assert "ETA" in drawn
    assert drawn.count("calibrate: a note") == 1
    assert "\x1b[3" in drawn  # colour


def test_no_color_takes_the_colour_away():
    drawn = on_a_terminal({"NO_COLOR": "1"})
    assert "4/10" in drawn
    assert "\x1b[3" not in drawn
