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


STOPPED = """
import math, os
from qtool.pipeline.search.spread.cluster import Spread, run_trials
trials = run_trials(Spread(jobs=2), math.sqrt, lambda count: [4] * 200)
print(next(trials), flush=True)
trials.close()
os._exit(0)
"""


def test_an_error_of_one_trial_is_not_preceded_by_warnings_about_the_others():
    words = [sys.executable, "-c", STOPPED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")


def test_no_process_keeps_the_output_of_the_command_open():
    """Readers of a pipe wait until its last writer is gone."""
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "[1.0, 2.0, 3.0]\n"), done.stderr
