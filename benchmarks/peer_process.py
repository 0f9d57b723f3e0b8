"""Run a program of benchmarks.peer_programs by another interpreter, on samples in an archive."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import children_cpu
from qtool.data import Dataset


class PeerError(Exception):
    """A peer's program failed, or was stopped; the message is the end of what it printed."""


def write_samples(path: Path, parts: Mapping[str, Dataset], names: Iterable[str]) -> None:
    """Write datasets as arrays of one archive.

    Args:
        path: of the archive.
        parts: each array's name begins with the key of its dataset.
        names: of the inputs, and "label" if wanted.
    """
    names = list(names)
    arrays = {}
    for kind, part in parts.items():
        batches = list(part.batches(32))
        arrays |= {f"{kind}{name}": np.concatenate([b[name] for b in batches]) for name in names}
    np.savez(path, **arrays)


def run_peer(
    python: str, program: str, words: Iterable[str], limit: float | None = None
) -> dict[str, Any]:
    """Return seconds, versions and CPU seconds of one run of a program.

    Args:
        python: the interpreter of an environment that has the tool.
        program: a module of benchmarks.peer_programs.
        words: its arguments.
        limit: seconds after which it is stopped; None: never.

    Raises:
        PeerError: the program failed, or took longer.
    """
    before = children_cpu()
    root = str(Path(__file__).parent.parent)
    try:
        done = subprocess.run(
            [python, "-m", f"benchmarks.peer_programs.{program}", *words],
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, "PYTHONPATH": root},
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"stopped after {error.timeout / 60:.0f} minutes") from error
    if done.returncode:
        raise PeerError(f"failed with {done.returncode}: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "cpu_seconds": children_cpu() - before}
