"""Run the ``qtool`` command in a process of its own that need not import the libraries again.

Importing torch, onnx and onnxruntime takes a test longer than most commands do. One process of each
test worker imports them, and every command is a fork of it. Tests of the start of the program, of
signals and of the environment start an interpreter instead.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

IMPORTED = ("torch", "onnxruntime", "scipy.optimize", "qtool.cli.main", "qtool.pipeline.run")
TIMEOUT = 300  # seconds


def qtool(*words: object, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Run ``python -m qtool WORDS`` and return its exit code and what it printed.

    Args:
        words: arguments.
        env: environment variables; None: those of the test. Libraries are imported already.

    Raises:
        AssertionError: it takes longer than TIMEOUT.
    """
    line = ["qtool", *map(str, words)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder) / "out", Path(folder) / "err")
        environment = dict(os.environ if env is None else env)
        process = context.Process(target=_run, args=(line, files, environment, Path.cwd()))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{line} took more than {TIMEOUT} s: {files[1].read_text()}")
        printed = [path.read_text() for path in files]
        return CompletedProcess(line, process.exitcode, *printed)


def _run(line: list[str], files: tuple[Path, Path], environment: dict[str, str], at: Path) -> None:
    """Become the command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(at)
    for number, path in zip((1, 2), files, strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(k, "w", closefd=False) for k in (1, 2))
    sys.argv = line
    try:
        runpy.run_module("qtool", run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
