"""The inputs of a model: constants that fit them, and states that several processes record."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from models import Net
from onnx_ir import from_proto

from qtool.data import DataSection, open_dataset
from qtool.errors import ModelError
from qtool.pipeline.inputs.specs import input_specs
from qtool.pipeline.inputs.streams import StreamRecorder
from qtool.recipe.sections.network import ModelInput
from qtool.steps.stage_cache import StageCache


@pytest.fixture
def model():
    """A network [N, 3] + [N, 3] whose sum is its next state."""
    net = Net(opset=21)
    y = net.add("Add", net.input("x", "N", 3), net.input("c", "N", 3), out="y")
    return from_proto(net.output(y, shape=("N", 3)).proto())


@pytest.mark.parametrize("constant", [[1, 2], float("nan"), float("inf"), 1e39])
def test_constants_that_do_not_fit_a_float_input_are_refused(model, constant):
    with pytest.raises(ModelError, match="does not fit the input `c`"):
        input_specs(model, "m", {"c": ModelInput(constant=constant)})


@pytest.mark.parametrize("constant", [0.1, [1, 2, 3], True])
def test_constants_that_fit(model, constant):
    specs, _ = input_specs(model, "m", {"c": ModelInput(constant=constant)})
    rows = np.broadcast_to(np.float32(constant), (2, 3))
    np.testing.assert_array_equal(specs["c"].constant_rows(2), rows)


def test_states_of_a_process_that_was_first_stay(model, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((4, 3), np.float32))
    inputs, _ = input_specs(model, "m")
    section = DataSection.model_validate({"arrays": str(tmp_path / "x.npz"), "loop": {"y": "c"}})
    dataset = open_dataset(section, inputs)
    recorder = StreamRecorder(model, inputs, StageCache(tmp_path / "stages"))
    _, folder = recorder.with_states(dataset)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    away = tmp_path / "away"
    folder.rename(away)

    def other_process(stage, done, total):
        if done == total:
            shutil.copytree(away, folder)
            (folder / "mark").touch()

    second, _ = replace(recorder, progress=other_process).with_states(dataset)
    assert (folder / "mark").exists()
    (batch,) = second.batches(4)
    np.testing.assert_array_equal(batch["c"][:, 0], [0, 1, 2, 3])
    fresh = replace(recorder, cache=replace(recorder.cache, fresh=True))
    fresh.with_states(dataset)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
