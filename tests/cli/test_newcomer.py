"""The path of a newcomer in the README: from a clone to the report on a model of one's own."""

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.search(r"^```console\n(.*?)^```", README, re.M | re.S)[1]
SCREEN = re.search(r"^╭.*?^```", README, re.M | re.S)[0]
# Seconds of a core, without the installation, which downloads torch.
LONGEST = 120


@pytest.fixture
def home(digits, tmp_path, monkeypatch) -> Path:
    """An empty folder, and elsewhere a network and its images under names that say nothing."""
    shutil.copy(digits / "digits.onnx", tmp_path / "net.onnx")
    shutil.copytree(digits / "data", tmp_path / "stuff")
    (tmp_path / "home").mkdir()
    for name in ("PYTHONPATH", "QTOOL_DATA"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def environment(clone: Path) -> None:
    """Make the virtual environment of a clone, of the packages that are installed here."""
    (clone / ".venv/bin").mkdir(parents=True)
    for name, words in (("python", ""), ("qtool", "-m qtool ")):
        command = clone / ".venv/bin" / name
        call = f'exec env PYTHONPATH="{clone}" {shlex.quote(sys.executable)} {words}"$@"'
        command.write_text(f"#!/bin/sh\n{call}\n")
        command.chmod(0o755)
    (clone / ".venv/.ready").touch()  # younger than pyproject.toml: nothing is installed


def seconds_of_children() -> float:
    """Return the processor time of finished child processes: a busy machine changes it little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def line(label: str, screen: str) -> list[str]:
    """Return the words behind a label of the terminal's report."""
    return re.search(rf"^ +{re.escape(label)} +(.*)$", screen, re.M)[1].split()


def assert_printed(screen: str) -> None:
    """Fail where the screen that the README shows is not what its command printed."""
    assert re.search(r"80\.6 k parameters.*", SCREEN)[0] in screen
    for label in ("file size", "14 integer", "0 float", "0 stray Q/DQ"):
        assert line(label, SCREEN) == line(label, screen)
    for label in ("top-1 (%)", "agreement (%)"):
        shown, printed = (
            [float(w) for w in line(label, s) if re.fullmatch(r"[\d.]+", w)]
            for s in (SCREEN, screen)
        )
        # One of 450 images either way: another CPU adds float sums in another order.
        assert printed == pytest.approx(shown, abs=0.23)


@pytest.mark.slow
def test_at_most_five_commands_lead_to_a_report_of_ones_own(home):
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, to know what a clone holds")
    clone, *commands = COMMANDS.splitlines()
    assert len(commands) <= 4
    folder = home / "qtool"
    # The working tree, as a clone of its commit would be.
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, files.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    assert clone == "git clone https://github.com/OWNER/qtool && cd qtool"
    environment(folder)
    start = seconds_of_children()
    screens = {}
    for command in commands:
        own = command.replace("/path/to/net.onnx", str(home.parent / "net.onnx"))
        own = own.replace("/path/to/data", str(home.parent / "stuff"))
        done = subprocess.run(own, shell=True, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        screens[command] = done.stdout
    assert_printed(screens["make demo"])
    seconds = seconds_of_children() - start
    report = json.loads((folder / "runs/mine/report.json").read_text())
    assert report["verdict"]["status"] == "passed" and report["accuracy"]["float"] > 99
    assert "runs/mine" in (folder / "board.html").read_text()
    assert seconds < LONGEST, f"{len(commands)} commands took {seconds:.0f} s of a core"
