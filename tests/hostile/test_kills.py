"""Runs that are killed and resumed write the bytes of a run that is not."""

import random

import pytest
from fuzz.kills import RECIPES, Undisturbed, disturbed, write_inputs

from qtool.steps.stage_cache import StageCache

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")


@pytest.mark.slow
def test_ten_kills(tmp_path):
    write_inputs(tmp_path)
    whole, kills, rng = Undisturbed(tmp_path), 0, random.Random(0)
    while kills < 10:
        for name in RECIPES:
            count, differing = disturbed(whole, name, rng)
            assert differing == [], name
            kills += count


def test_what_a_killed_run_was_writing_is_removed_by_the_next(tmp_path):
    stages = tmp_path / "run" / ".stages"
    stages.mkdir(parents=True)
    half = [stages / ".01234567.tmp-qat-1.pt", tmp_path / "run" / ".89abcdef.tmp-model.onnx"]
    others = [tmp_path / ".01234567.tmp-model.onnx", stages / "qat-1.pt"]
    for path in (*half, *others):
        path.write_bytes(b"x")
    with StageCache(stages).locked():
        assert not any(path.exists() for path in half)
    assert all(path.exists() for path in others)
