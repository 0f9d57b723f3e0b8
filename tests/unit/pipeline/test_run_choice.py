"""The folder of a run: its own one again, else a new one; never another run's in silence."""

import os
import threading
from pathlib import Path

import pytest

from qtool.pipeline.context import RunOptions
from qtool.pipeline.folders.choice import Request, chosen_folder
from qtool.pipeline.folders.identity import run_identity
from qtool.recipe.loader import load_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finish(identity, *, out=None, overwrite=False):
    """Run to the end as a run of that identity does; return its folder."""
    with chosen_folder(Request(Path("runs/net"), out, overwrite), identity) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(identity)
    return str(folder)


def test_each_other_run_gets_the_next_number_and_the_same_run_its_own_folder_again():
    assert [finish(name) for name in "abcab"] == [
        *("runs/net", "runs/net-2", "runs/net-3", "runs/net", "runs/net-2"),
    ]
    assert Path("runs/net-2/report.json").read_text() == "b"


def test_the_user_names_what_is_replaced():
    finish("a")
    assert finish("b", overwrite=True) == "runs/net"
    assert finish("b") == "runs/net"  # it is b's now
    assert finish("c", out=Path("runs/net")) == "runs/net"
    assert finish("a") == "runs/net-2"


def test_a_folder_of_an_older_version_or_a_file_of_that_name_stays():
    Path("runs/net").mkdir(parents=True)
    Path("runs/net/report.json").write_text("old")
    Path("runs/net-2").write_text("a file")
    Path("runs/net-3").mkdir()
    assert finish("a") == "runs/net-3"  # it is empty
    assert Path("runs/net/report.json").read_text() == "old"


def test_an_interrupted_run_goes_on_in_its_folder():
    finish("a")
    with (
        pytest.raises(KeyboardInterrupt),
        chosen_folder(Request(Path("runs/net")), "b") as folder,
    ):
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    assert finish("b") == str(folder) == "runs/net-2"
    assert (folder / "half").exists()


@pytest.mark.parametrize("before", [0, 1])
def test_a_run_that_fails_leaves_no_folder(before):
    for _ in range(before):
        finish("a")
    with pytest.raises(ValueError, match="so"), chosen_folder(Request(Path("runs/net")), "b"):
        raise ValueError("so")
    assert [str(p) for p in Path().glob("runs/*")] == ["runs/net"] * before
    assert Path("runs").exists() == bool(before)


def test_a_failure_keeps_what_was_finished_before_in_the_same_folder():
    finish("a")
    with pytest.raises(ValueError, match="so"), chosen_folder(Request(Path("runs/net")), "a"):
        raise ValueError("so")
    assert Path("runs/net/report.json").read_text() == "a"


def test_runs_that_choose_at_the_same_time_get_different_folders():
    folders, barrier = [], threading.Barrier(8)

    def one(name):
        barrier.wait()
        with chosen_folder(Request(Path("runs/net")), name) as folder:
            folders.append(str(folder))

    threads = [threading.Thread(target=one, args=(f"{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == sorted(["runs/net", *(f"runs/net-{k}" for k in range(2, 9))])


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "net.onnx.data").write_bytes(b"weights")
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "train/cat/1.png").write_bytes(b"png")
    (tmp_path / "r.yaml").write_text("model: net.onnx\ncalibrate: {images: train}\n")
    return tmp_path / "r.yaml"


def identity(recipe, *overrides, command="ptq", **options):
    return run_identity(command, load_recipe(recipe, overrides), RunOptions(**options))


def test_what_changes_results_makes_another_run(recipe):
    runs = [
        identity(recipe),
        identity(recipe, "calibrate.count=5"),
        identity(recipe, command="qat"),
        identity(recipe, seed=1),
        identity(recipe, threads=1),
        identity(recipe, plan_file=recipe),
    ]
    assert len(set(runs)) == len(runs)


def test_what_changes_no_result_does_not(recipe):
    other = identity(recipe, fresh=True, trust_code=True, progress=print)
    assert other == identity(recipe, "calibrate.count=512") == identity(recipe)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "net.onnx").write_bytes(b"ONNX"),
        lambda folder: (folder / "net.onnx.data").write_bytes(b"trained"),
        lambda folder: (folder / "train/cat/2.png").write_bytes(b"png"),
        lambda folder: os.utime(folder / "train/cat/1.png", (1, 1)),
    ],
)
def test_other_files_make_another_run(recipe, change):
    before = identity(recipe)
    change(recipe.parent)
    assert identity(recipe) != before


def test_a_model_that_is_copied_anew_is_the_same_model(recipe):
    before = identity(recipe)
    os.utime(recipe.parent / "net.onnx", (1, 1))
    assert identity(recipe) == before
