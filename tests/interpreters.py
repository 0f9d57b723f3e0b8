"""Interpreters of their own for code that a test runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fresh(code, folder):
    """Run code in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )
