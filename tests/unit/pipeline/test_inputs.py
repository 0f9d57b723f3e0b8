"""The inputs of a model: constants that fit them, and states that several processes record."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from models import Net
from onnx_ir import from_proto

from qtool.data import DataSection, fit_batch_axes, open_dataset
from qtool.errors import ModelError
from qtool.pipeline.inputs.calls import feed_files_whole
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
    fresh = replace(recorder, cache=replace(recorder.cache, fresh=True, _made=set()))
    fresh.with_states(dataset)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content


def graph_network(batch="nodes"):
    """Each node reads the sum of its neighbours: rows of x that are no samples."""
    net = Net(opset=21)
    x, edges = net.input("x", batch, 3), net.input("edges", batch, batch)
    y = net.add("MatMul", edges, net.add("MatMul", x, net.weight(3, 4)))
    return from_proto(net.output(net.add("Relu", y, out="y")).proto())


def mean_of_rows():
    net = Net(opset=21)
    x = net.add("MatMul", net.input("x", "T", 3), net.weight(3, 4))
    mean = net.add("ReduceMean", x, net.const(np.array([0])), out="y")
    return from_proto(net.output(mean).proto())


def rows_apart():
    net = Net(opset=21)
    x = net.add("MatMul", net.input("x", "N", 3), net.weight(3, 4))
    return from_proto(net.output(net.add("Relu", x, out="y")).proto())


def opened(model, folder, files=2, label=None):
    """Save files of five rows each; return inputs and samples as a run reads them."""
    rng = np.random.default_rng(0)
    for k in range(files):
        arrays = {
            value.name: rng.normal(size=(5, 5) if value.name == "edges" else (5, 3))
            for value in model.graph.inputs
        }
        arrays |= {} if label is None else {"label": label}
        np.savez(folder / f"{k}.npz", **{name: np.float32(a) for name, a in arrays.items()})
    section = DataSection(arrays=str(folder))
    inputs, _ = fit_batch_axes(section, input_specs(model, "m")[0])
    inputs, notes = feed_files_whole(section, model, inputs)
    return open_dataset(section, inputs), notes


@pytest.mark.parametrize("label", [None, 1.0])
@pytest.mark.parametrize("build", [graph_network, mean_of_rows])
def test_a_file_whose_rows_belong_together_is_one_call(tmp_path, build, label):
    data, notes = opened(build(), tmp_path, label=label)
    assert data.count == 2 and notes[0].startswith("each file is one call")
    for k, batch in enumerate(data.batches(1)):
        np.testing.assert_array_equal(batch["x"], np.load(tmp_path / f"{k}.npz")["x"])


@pytest.mark.parametrize(
    ("build", "files", "label"),
    [
        (rows_apart, 2, None),
        (mean_of_rows, 1, None),  # nothing says that the rows of a sole file are one call
        (mean_of_rows, 2, [0, 1, 0, 1, 0]),  # a label for each row: they are samples
        (lambda: graph_network(5), 2, None),  # the file fixes the batch
    ],
)
def test_rows_that_are_computed_apart_are_samples(tmp_path, build, files, label):
    data, notes = opened(build(), tmp_path, files, label)
    assert data.count == 5 * files and notes == ()
