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
COMMANDS = re.search(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[1]
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
    for command in commands:
        own = command.replace("/path/to/net.onnx", str(home.parent / "net.onnx"))
        own = own.replace("/path/to/data", str(home.parent / "stuff"))
        done = subprocess.run(own, shell=True, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    seconds = seconds_of_children() - start
    report = json.loads((folder / "runs/mine/report.json").read_text())
    assert report["verdict"]["status"] == "passed" and report["accuracy"]["float"] > 99
    assert "runs/mine" in (folder / "board.html").read_text()
    assert seconds < LONGEST, f"{len(commands)} commands took {seconds:.0f} s of a core"
