"""Commands of the documents: all name commands and options that exist, and those to copy run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from qtool.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands
# Pages that another test runs in a place of its own.
ELSEWHERE = {"ci.md"}
RUN = [page for page in PAGES if SHELL.search(page.read_text()) and page.name not in ELSEWHERE]


def invocations(text):
    """Yield (command, options) of every line of code that calls qtool."""
    code = re.findall(r"^```[^\n]*\n(.*?)^```|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL)
    for block, inline in code:
        for line in (block or inline).splitlines():
            found = re.match(r"\s*(?:- |\$ )?qtool +([a-z]+)(?=\s|$)(.*)", line)
            if found:
                rest = found[2].split("  #")[0]
                yield found[1], re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_commands_and_options_that_exist(page):
    for command, options in invocations(page.read_text()):
        assert command in COMMANDS, f"{page.name}: qtool {command}"
        known = {name for option in COMMANDS[command].params for name in option.opts}
        assert set(options) <= known | {"--help"}, f"{page.name}: qtool {command} {options}"


def test_lines_that_call_qtool_are_read():
    page = "```sh\nqtool ptq --recipe R --out O\n```\nor `qtool check R --json` or `qtool`"
    assert list(invocations(page)) == [("ptq", ["--recipe", "--out"]), ("check", ["--json"])]
    assert len(RUN) >= 4 and sum(len(list(invocations(page.read_text()))) for page in PAGES) > 50


@pytest.fixture
def place(digits, tmp_path):
    """A copy of recipes/digits with the files that pages name, and `qtool` on the path."""
    folder = tmp_path / "digits"
    shutil.copytree(digits, folder)
    for name in ("a", "b"):
        shutil.copy(folder / "digits.onnx", folder / f"{name}.onnx")
    for name in ("recipe", "R"):
        shutil.copy(folder / "int8.yaml", folder / f"{name}.yaml")
    (tmp_path / "bin").mkdir()
    for name, words in (("qtool", "-m qtool "), ("python", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
        command.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, place):
    path = f"{place.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    for script in SHELL.findall(page.read_text()):
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=place,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{page.name}: {script}\n{done.stdout}{done.stderr}"
