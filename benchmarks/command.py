"""Run qtool as a benchmark's row does: a recipe file, a run folder and a log beside it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.networks import data_folder, write_recipe


def run_qtool(command: str, content: dict[str, Any], out: Path, *options: str) -> tuple[Any, float]:
    """Run a command that writes a run folder; return its report and seconds, or exit if it fails.

    Args:
        command: ptq, qat or sensitivity.
        content: of the recipe, paths absolute.
        out: the run folder; recipe and log lie beside it.
        options: more words of the command line.
    """
    path, log = (out.with_name(f"{out.name}.{ending}") for ending in ("yaml", "log"))
    write_recipe(content, path)
    named = [str(path)] if command == "sensitivity" else ["--recipe", str(path)]
    line = [sys.executable, "-m", "qtool", command, *named, "--out", str(out)]
    # Torch models are read by factories in this folder.
    paths = [str(data_folder() / "arch"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    start = time.perf_counter()
    with log.open("w") as errors:
        done = subprocess.run(
            [*line, "--json", *options], stdout=subprocess.PIPE, stderr=errors, env=environment
        )
    if done.returncode not in (0, 1):
        sys.exit(f"{out}: qtool failed with {done.returncode}:\n{log.read_text()}")
    return json.loads(done.stdout), time.perf_counter() - start
