"""Plans on disk: the round trip, equal bytes for equal plans, damaged files."""

import json
import zipfile

import numpy as np
import pytest
from models import BUILDERS, frozen_plan, rewritten

from qtool.errors import RecipeError
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.plan_io import read_plan, write_plan
from qtool.quant.primitives import PerBlock, PerChannel, PerTensor, QuantParams, QuantSpec


def sample() -> QuantPlan:
    """Every kind of grid, names that files and zip archives could stumble over."""
    act = QuantSpec(8, False, False)
    blocks = QuantSpec(4, True, True, PerBlock(1, 32), "power_of_two")
    rng = np.random.default_rng(0)
    return QuantPlan(
        sites={"/a/Conv": Site("/a/Conv", "Conv", ("/a/Conv", "/a/Relu"), ("x",), "y", "w", None)},
        data_movement_ops=frozenset({"reshape", "pad"}),
        grid_of={"x": "x", "y": "x", "w": "w", "ünïcode/..": "b", "v.npy": "v"},
        grids={
            "x": QuantParams(act, np.array(0.1, np.float32), np.array(3, np.int32)),
            "w": QuantParams(
                QuantSpec(8, True, True, PerChannel(1)),
                rng.random(3, np.float32),
                np.zeros(3, np.int32),
            ),
            "b": blocks,
            "v": QuantSpec(8, False, True, PerTensor()),
        },
        codes={"w": rng.integers(-127, 128, (2, 3)).astype(np.int8)},
        weight_overrides={"ünïcode/..": rng.random((2, 64), np.float32), "scalar": np.array(1.5)},
        float_nodes={"softmax": "no kernel"},
        log=("one", "two"),
    )


def assert_equal(a: QuantPlan, b: QuantPlan) -> None:
    for name in ("sites", "data_movement_ops", "grid_of", "float_nodes", "log"):
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.sites) == list(b.sites)
    assert a.grids.keys() == b.grids.keys()
    for name, grid in a.grids.items():
        other = b.grids[name]
        if isinstance(grid, QuantSpec):
            assert grid == other
        else:
            assert isinstance(other, QuantParams) and grid.spec == other.spec
            same_arrays(
                {"s": grid.scale, "z": grid.zero_point}, {"s": other.scale, "z": other.zero_point}
            )
    same_arrays(a.codes, b.codes)
    same_arrays(a.weight_overrides, b.weight_overrides)


def same_arrays(a, b) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        np.testing.assert_array_equal(array, b[name])


def plans():
    model = BUILDERS["squeeze_excite"]().model()
    rewritten(model)
    return {"empty": QuantPlan(), "sample": sample(), "real": frozen_plan(model)}


@pytest.mark.parametrize("name", ["empty", "sample", "real"])
def test_the_round_trip_is_equal_and_so_are_the_bytes(name, tmp_path):
    plan = plans()[name]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    write_plan(plan, folders[0])
    again = read_plan(folders[0] / "plan.json")
    assert_equal(plan, again)
    write_plan(again, folders[1])
    for file in ("plan.json", "plan.npz"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_another_plan_has_other_bytes(tmp_path):
    write_plan(sample(), tmp_path)
    first = (tmp_path / "plan.npz").read_bytes()
    other = sample()
    other.codes["w"][0, 0] += 1
    write_plan(other, tmp_path)
    assert (tmp_path / "plan.npz").read_bytes() != first


def test_people_can_read_scales(tmp_path):
    write_plan(sample(), tmp_path)
    grid = json.loads((tmp_path / "plan.json").read_text())["grids"]["x"]
    assert grid["granularity"] == {"kind": "tensor"} and grid["zero_point"] == 3
    assert np.float32(grid["scale"]) == np.float32(0.1)


def test_a_plan_that_still_has_the_key_absorbed_loads(tmp_path):
    """It was written up to 2026-11 and was always empty."""
    write_plan(sample(), tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "absorbed": []}))
    assert_equal(sample(), read_plan(path))


def without(key):
    return lambda d: d.pop(key)


def put(key, value):
    return lambda d: d.update({key: value})


DAMAGES = {
    **{f"no {k}": without(k) for k in ("version", "sites", "passes", "grid_of", "grids", "log")},
    "no floats": without("floats"),
    "sites a number": put("sites", 3),
    "sites of texts": put("sites", ["a"]),
    "site without op": lambda d: d["sites"][0].pop("op"),
    "site with more": lambda d: d["sites"][0].update(color="red"),
    "grids a list": put("grids", []),
    "grid a text": lambda d: d["grids"].update(x="eight"),
    "grid without bits": lambda d: d["grids"]["x"].pop("bits"),
    "unknown granularity": lambda d: d["grids"]["x"].update(granularity={"kind": "row"}),
    "granularity a text": lambda d: d["grids"]["x"].update(granularity="tensor"),
    "grid_of a number": put("grid_of", 1),
    "floats null": put("floats", None),
    "passes null": put("passes", None),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_json(name, tmp_path):
    write_plan(sample(), tmp_path)
    path = tmp_path / "plan.json"
    document = json.loads(path.read_text())
    DAMAGES[name](document)
    path.write_text(json.dumps(document))
    assert refused(path).startswith(f"plan {path}: not a readable plan (")


def refused(path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_plan(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\udcff"])
def test_no_plan_at_all(text, tmp_path):
    write_plan(sample(), tmp_path)
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("utf8", "surrogateescape"))
    assert "give the plan.json of a finished run" in refused(path)


def test_another_version(tmp_path):
    write_plan(sample(), tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))
    assert "version 7, expected 1; make it again" in refused(path)


@pytest.mark.parametrize("file", ["plan.json", "plan.npz"])
def test_a_missing_file(file, tmp_path):
    write_plan(sample(), tmp_path)
    (tmp_path / file).unlink()
    assert "FileNotFoundError" in refused(tmp_path / "plan.json")


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.99])
def test_a_truncated_archive(share, tmp_path):
    write_plan(sample(), tmp_path)
    file = tmp_path / "plan.npz"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "not a readable plan" in refused(tmp_path / "plan.json")


def test_flipped_bytes_in_the_archive_never_end_in_a_traceback(tmp_path):
    write_plan(sample(), tmp_path)
    file = tmp_path / "plan.npz"
    whole = file.read_bytes()
    errors = set()
    for k in range(0, len(whole), 7):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 0x5A]) + whole[k + 1 :])
        try:
            read_plan(tmp_path / "plan.json")
        except RecipeError as error:
            errors.add(str(error).split("(")[1].split(":")[0])
    assert "BadZipFile" in errors


def test_an_archive_with_pickles_is_refused(tmp_path):
    write_plan(sample(), tmp_path)
    np.savez(tmp_path / "plan.npz", **{"codes/w": np.array([{}], object)})
    assert "allow_pickle" in refused(tmp_path / "plan.json")


def test_the_archive_carries_no_time(tmp_path):
    write_plan(sample(), tmp_path)
    with zipfile.ZipFile(tmp_path / "plan.npz") as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
