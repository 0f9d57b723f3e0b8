"""What a reviewer broke: stale results, plans of other models, two runs in one folder."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from models import Net

from qtool.errors import RecipeError
from qtool.loading import load_model
from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.recipe.loader import recipe_from_options
from qtool.steps.stage_cache import StageCache, first_missing


def small() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 8)
    x = net.conv(net.add("Relu", x), 8, 4)
    return net.output(net.add("Flatten", net.add("GlobalAveragePool", x), out="y"))


@pytest.fixture
def data(tmp_path):
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path / "data.npz"


def external(net: Net, path, factor: float = 1.0) -> None:
    proto = net.proto()
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array((array * factor).astype(np.float32), tensor.name)
        )
    onnx.save_model(
        proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )


def test_other_external_weights_are_another_model(tmp_path, data):
    path = tmp_path / "net.onnx"
    external(small(), path)
    first = load_model(path)
    total = path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert first.size == total
    (tmp_path / "weights.bin").unlink()
    external(small(), path, factor=8.0)
    assert load_model(path).sha256 != first.sha256


def test_a_plan_takes_its_weight_grids_from_the_model_at_hand(tmp_path, data):
    path = tmp_path / "net.onnx"
    onnx.save(small().proto(), path)
    recipe = recipe_from_options(path, data)
    run_ptq(recipe, tmp_path / "a", RunOptions(threads=1))
    proto = small().proto()
    tensor = proto.graph.initializer[0]
    array = onnx.numpy_helper.to_array(tensor) * 4
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    run_ptq(recipe, tmp_path / "b", RunOptions(threads=1, plan_file=tmp_path / "a" / "plan.json"))
    scales = [np.load(tmp_path / k / "plan.npz")[f"scale/{tensor.name}_padded"] for k in "ab"]
    np.testing.assert_allclose(scales[1], 4 * scales[0], rtol=1e-6)


def test_a_plan_for_other_grids_is_refused(tmp_path, data):
    path = tmp_path / "net.onnx"
    onnx.save(small().proto(), path)
    run_ptq(recipe_from_options(path, data), tmp_path / "a", RunOptions(threads=1))
    other = recipe_from_options(path, data, ["bits.granularity=tensor"])
    with pytest.raises(RecipeError, match="made for another model, target or recipe"):
        run_ptq(
            other, tmp_path / "b", RunOptions(threads=1, plan_file=tmp_path / "a" / "plan.json")
        )
    assert not (tmp_path / "b").exists()


def test_two_runs_do_not_share_a_folder(tmp_path):
    stages = StageCache(tmp_path / "run" / ".stages")
    with stages.locked():
        code = (
            "from pathlib import Path; from qtool.steps.stage_cache import StageCache; import sys\n"
            "from qtool.errors import RecipeError\n"
            "try:\n"
            "    StageCache(Path(sys.argv[1])).locked().__enter__()\n"
            "except RecipeError as error:\n"
            "    print(error)\n"
        )
        words = [sys.executable, "-c", code, str(tmp_path / "run" / ".stages")]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "another run is writing there" in said
    with stages.locked():
        pass


def test_a_refused_run_leaves_no_folder_it_made(tmp_path, data):
    path = tmp_path / "net.onnx"
    onnx.save(small().proto(), path)
    recipe = recipe_from_options(path, data, ['bits.layers={"op:Conv": float}'])
    made = tmp_path / "new" / "deep" / "run"
    assert first_missing(made) == tmp_path / "new"
    with pytest.raises(Exception, match="nothing to quantize"):
        run_ptq(recipe, made, RunOptions(threads=1))
    assert not (tmp_path / "new").exists()


def test_a_value_named_like_codes_is_no_crash(tmp_path, data):
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 4, out="y_quantized")
    x = net.conv(net.add("Relu", x, out="x_quantized"), 4, 5, out="y")
    net.output(x, "y_quantized")
    onnx.save(net.proto(), tmp_path / "net.onnx")
    recipe = recipe_from_options(tmp_path / "net.onnx", data)
    report = run_ptq(recipe, tmp_path / "a", RunOptions(threads=1))
    assert report.parity.passed and report.parity.max_lsb == 0
