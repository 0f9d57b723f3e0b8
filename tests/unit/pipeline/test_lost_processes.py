"""Processes of this machine that are killed: their trials run again, a few times."""

import os
import signal
from pathlib import Path

import pytest

from qtool.errors import RecipeError
from qtool.pipeline.search.spread.cluster import ATTEMPTS, Spread, run_trials

TRIALS = ("a", "b", "c", "d")


def killed_once(trial: str, folder: str) -> str:
    """Leave a file, as a finished trial does; the first process that tries "b" is killed."""
    died = Path(folder) / "died"
    if trial == "b" and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(folder) / trial).touch()
    return trial


def killed(trial: str, folder: str) -> str:
    """Never finish, as where the system kills for memory."""
    with (Path(folder) / "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    return trial


def test_the_trials_of_a_killed_process_run_again(tmp_path):
    def pending(count: int) -> list[str]:
        return [trial for trial in TRIALS if not (tmp_path / trial).exists()]

    done = list(run_trials(Spread(jobs=2), killed_once, pending, str(tmp_path)))
    assert (tmp_path / "died").exists() and pending(2) == []
    assert "b" in done and set(done) <= set(TRIALS)


def test_processes_that_are_lost_again_and_again_end_the_run(tmp_path):
    with pytest.raises(RecipeError, match=f"(?s)lost {ATTEMPTS} times.*give fewer --jobs"):
        list(run_trials(Spread(jobs=2), killed, lambda count: ["a"], str(tmp_path)))
    assert len((tmp_path / "deaths").read_text()) >= ATTEMPTS
