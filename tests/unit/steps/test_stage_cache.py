"""Stages: timed and told, remembered by key, whole on disk or not there."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from qtool.steps.stage_cache import (
    MOST_SHARED,
    StageCache,
    StageRecord,
    peak_rss_mb,
    source_digest,
)


def write(text: str, path: Path) -> None:
    path.write_text(text)


def read(path: Path) -> str:
    return path.read_text()


class Work:
    """Something slow that counts how often it was done."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return f"result {self.times}"


@pytest.fixture
def work() -> Work:
    return Work()


def recall(folder: Path, work, *, parts=("recipe",), base=("source",), fresh=False, name="grids"):
    """(result, cached) of one run."""
    record = StageRecord()
    stages = StageCache(folder, fresh, base)
    return stages.cached(record, name, parts, work, write, read), record.cached


def test_a_result_is_made_once(tmp_path, work):
    assert recall(tmp_path, work) == ("result 1", False)
    assert recall(tmp_path, work) == ("result 1", True)
    assert work.times == 1


KEYS = [
    {},
    {"parts": ("recipe", "")},
    {"parts": ("other",)},
    {"parts": ("re", "cipe")},
    {"parts": ()},
    {"base": ("new source",)},
    {"base": ("source", "recipe"), "parts": ()},
    {"name": "plan"},
]


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(range(len(KEYS) - 2), 2)])
def test_another_key_is_another_result(tmp_path, work, one, other):
    assert recall(tmp_path, work, **KEYS[one]) == ("result 1", False)
    assert recall(tmp_path, work, **KEYS[other]) == ("result 2", False)
    assert recall(tmp_path, work, **KEYS[one]) == ("result 1", True)


def test_another_name_is_another_result(tmp_path, work):
    recall(tmp_path, work)
    assert recall(tmp_path, work, name="plan") == ("result 2", False)


def test_fresh_ignores_what_is_there_and_replaces_it(tmp_path, work):
    recall(tmp_path, work)
    assert recall(tmp_path, work, fresh=True) == ("result 2", False)
    assert recall(tmp_path, work) == ("result 2", True)


def test_a_result_that_cannot_be_made_leaves_nothing(tmp_path):
    def broken() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recall(tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


def test_a_result_half_written_is_not_kept(tmp_path, work):
    def write_half(text: str, path: Path) -> None:
        path.write_text(text[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StageCache(tmp_path, False, ()).cached(StageRecord(), "grids", (), work, write_half, read)
    assert list(tmp_path.iterdir()) == []
    assert recall(tmp_path, work, base=(), parts=()) == ("result 2", False)


def test_a_remembered_file_has_its_last_name_only_when_whole(tmp_path, work):
    seen = []

    def look(text: str, path: Path) -> None:
        path.write_text(text)
        seen.extend(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))

    StageCache(tmp_path, False, ()).cached(StageRecord(), "grids", (), work, look, read)
    assert seen == []
    assert [p.name[:6] for p in tmp_path.iterdir()] == ["grids-"]


def test_a_damaged_result_is_made_again(tmp_path, work):
    """A disk that filled up, another tool: the cache is never the reason a run fails."""
    recall(tmp_path, work)
    (file,) = tmp_path.iterdir()
    file.write_text("damaged")

    def strict(path: Path) -> str:
        if not path.read_text().startswith("result"):
            raise ValueError("damaged")
        return path.read_text()

    record = StageRecord()
    found = StageCache(tmp_path, False, ("source",)).cached(
        record, "grids", ("recipe",), work, write, strict
    )
    assert (found, record.cached) == ("result 2", False)


def test_a_stage_is_reported_with_its_notes(tmp_path):
    stages = StageCache(tmp_path, False, ())
    with stages.stage("load") as record:
        record.notes.append("a note")
    with stages.stage("calibrate") as record:
        record.cached = True
        record.child_mb = 10**6
    load, calibrate = stages.done
    assert (load.name, load.notes, load.cached) == ("load", ["a note"], False)
    assert load.seconds >= 0 and load.peak_rss_mb == peak_rss_mb() > 10
    assert (calibrate.name, calibrate.cached, calibrate.peak_rss_mb) == ("calibrate", True, 10**6)


def test_a_stage_that_fails_leaves_no_record(tmp_path):
    stages = StageCache(tmp_path, False, ())
    with pytest.raises(ValueError), stages.stage("load"):
        raise ValueError
    assert stages.done == []


def test_the_source_has_a_digest():
    assert len(source_digest()) == 64
    assert source_digest() == source_digest()


def test_fresh_uses_what_the_same_run_made(tmp_path, work):
    """A search tries a recipe, and its run follows with stages of its own."""
    assert recall(tmp_path, work) == ("result 1", False)
    stages = StageCache(tmp_path, fresh=True, base=("source",))
    search = replace(stages, done=[])
    arguments = (
        "grids",
        ("recipe",),
        work,
        lambda text, path: path.write_text(text),
        Path.read_text,
    )
    assert search.cached(StageRecord(), *arguments) == "result 2"
    assert stages.cached(StageRecord(), *arguments) == "result 2"


def test_trials_share_the_latest_results(tmp_path, work):
    search = StageCache(tmp_path, shared={})
    first, second = (replace(search, done=[]) for _ in range(2))
    assert (
        first.remembered("x", lambda: "a", work)
        == second.remembered("x", lambda: "a", work)
        == "result 1"
    )
    for key in "bcd":
        first.remembered("x", lambda key=key: key, work)
    assert second.remembered("x", lambda: "a", work) == "result 1"  # now the latest
    first.remembered("x", lambda: "e", work)
    assert second.remembered("x", lambda: "a", work) == "result 1"
    assert second.remembered("x", lambda: "b", work) == "result 6"
    assert len(search.shared["x"]) == MOST_SHARED


def test_trials_hold_the_results_of_each_kind(tmp_path, work):
    search = StageCache(tmp_path, shared={})
    for key in ("a", "b", "c"):
        search.remembered("small", lambda key=key: key, work, most=2)
    assert search.remembered("small", lambda: "b", work, most=2) == "result 2"
    assert search.remembered("large", lambda: "b", work, most=2) == "result 4"
    assert search.remembered("small", lambda: "a", work, most=2) == "result 5"


def test_a_run_of_its_own_holds_nothing(tmp_path, work):
    stages = StageCache(tmp_path)
    assert stages.remembered("x", lambda: 1 / 0, work) == "result 1"
    assert stages.remembered("x", lambda: 1 / 0, work) == "result 2"
