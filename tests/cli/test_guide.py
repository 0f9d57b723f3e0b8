"""The commands of docs/guide.md, run in order as a new user does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_command_of_the_guide_runs(digits, tmp_path):
    place = tmp_path / "digits"
    shutil.copytree(digits, place)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/qtool"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qtool "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    page = (ROOT / "docs/guide.md").read_text()
    scripts = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(scripts) >= 7
    for script in scripts:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=place,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
