"""Processes of this machine end with the command that started them."""

import subprocess
import sys

PROGRAM = """
import os, math
from qtool.pipeline.search.spread.cluster import Spread, workers
with workers(Spread(jobs=2)) as processes:
    print(sorted(processes.map(math.sqrt, [1, 4, 9])), flush=True)
os._exit(0)  # as the command does
"""


def test_no_process_keeps_the_output_of_the_command_open():
    """Readers of a pipe wait until its last writer is gone."""
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "[1.0, 2.0, 3.0]\n"), done.stderr
