"""Files for every target: ONNX Runtime computes what was simulated; OpenVINO computes the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import BUILDERS, Net, bind, feeds_for, run, sqnr

from qtool.annotation.annotator import annotate
from qtool.calibration import MinMax
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.emitters import emit_model
from qtool.graph.queries import constant
from qtool.loading import infer_shapes
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.rewrites import REWRITES
from qtool.simulation.fake_quant import Simulation
from qtool.targets.loader import load_target, target_names
from qtool.targets.target import Target
from qtool.weights.grids import weight_grids


def file_for(target: Target, net: Net, folder: Path, bits: Bits | None = None):
    """The rewritten model, its frozen plan and the emitted model."""
    model = net.load(folder)
    bind(model, feeds_for(model))
    for name in target.rewrites:
        REWRITES[name](model, lambda node: True)
        infer_shapes(model)
    own = Bits(
        target.weights.bits, target.activations.bits, granularity=target.weights.granularity.name
    )
    plan = annotate(model, target, bits or own)
    stats = collect(
        model, observed_values(model, plan), [feeds_for(model)], histograms=False, threads=1
    )
    plan = freeze(model, weight_grids(model, choose_grids(plan, stats, MinMax())))
    return model, plan, emit_model(model, plan, target, target.formats[0])[0]


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", target_names())
def test_onnx_runtime_computes_what_was_simulated(name, builder, tmp_path):
    target, net = load_target(name), BUILDERS[builder]()
    model, plan, emitted = file_for(target, net, tmp_path)
    assert any(site.weight is not None for site in plan.sites.values())
    feeds = feeds_for(model, seed=7)
    simulated, got = Simulation(model, plan)(feeds), run(emitted, feeds)
    params = plan.params("y")
    # Sums in another order: a code moves by one now and then, and moves others behind it.
    step = float(params.scale) if params is not None else 0.05 * float(np.abs(got["y"]).max())
    off = np.abs(simulated["y"].numpy() - got["y"])
    assert off.max() <= 2 * step * (1 + 1e-5)
    assert sqnr(got["y"], simulated["y"].numpy()) > 40
    least = 20 if target.scale == "power_of_two" else 25
    assert sqnr(run(net.proto(), feeds)["y"], got["y"]) > least


def run_in_openvino(emitted: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of a file by name, computed by OpenVINO's CPU plugin in float32."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    read = core.read_model(ir.to_proto(emitted).SerializeToString())
    compiled = core.compile_model(read, "CPU", options)
    results = compiled(feeds)
    return {out.get_any_name(): results[out] for out in compiled.outputs}


@pytest.mark.parametrize("builder", BUILDERS)
def test_openvino_computes_the_same_codes(builder, tmp_path):
    """On these networks no code differs from ONNX Runtime's, nor any float beyond its last bits."""
    model, _, emitted = file_for(load_target("openvino"), BUILDERS[builder](), tmp_path)
    feeds = feeds_for(model, seed=7)
    outputs = run_in_openvino(emitted, feeds)
    for key, array in run(emitted, feeds).items():
        np.testing.assert_allclose(outputs[key], array, rtol=0, atol=1e-5 * np.abs(array).max())


@pytest.mark.parametrize("builder", BUILDERS)
def test_openvino_runs_the_files_of_the_default_target(builder, tmp_path):
    model, _, emitted = file_for(load_target("onnxruntime-cpu"), BUILDERS[builder](), tmp_path)
    feeds = feeds_for(model, seed=7)
    outputs = run_in_openvino(emitted, feeds)
    for key, array in run(emitted, feeds).items():
        assert sqnr(outputs[key], array) > 30  # OpenVINO keeps some sums as floats


def test_openvino_runs_an_integer_mean_at_the_output(tmp_path):
    """As in SqueezeNet: nothing but a Flatten lies behind the pool."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    x = net.add("GlobalAveragePool", x)
    net.output(net.add("Flatten", x, out="y", axis=1))
    model, _, emitted = file_for(load_target("onnxruntime-cpu"), net, tmp_path)
    assert "MatMulInteger" in {node.op_type for node in emitted.graph}
    feeds = feeds_for(model, seed=7)
    assert sqnr(run_in_openvino(emitted, feeds)["y"], run(emitted, feeds)["y"]) > 50


def large() -> Net:
    """Return a large convolution between two small ones: few products, few multiplications."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 32, 32), 4, 32, name="thin"))
    x = net.add("Relu", net.conv(x, 32, 32, name="wide"))
    x = net.add("MaxPool", x, kernel_shape=[8, 8], strides=[8, 8])
    return net.output(net.conv(x, 32, 8, name="tiny", out="y"))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_shifted_zero_point_changes_no_bit(bits, tmp_path):
    plain, amx = load_target("onnxruntime-cpu"), load_target("onnxruntime-cpu-amx")
    files = {}
    for target in (plain, amx):
        model, _, files[target.name] = file_for(target, large(), tmp_path, Bits(bits, 8))
    feeds = feeds_for(model, seed=3)
    want, got = (run(files[target.name], feeds)["y"] for target in (plain, amx))
    np.testing.assert_array_equal(want, got)
    zeros = {}
    for node in files[amx.name].graph:
        if node.op_type == "Conv":
            pair = node.inputs[1].producer()
            zero = constant(pair.inputs[2]) if len(pair.inputs) > 2 else np.zeros(1)
            zeros[node.name] = set(np.ravel(zero).tolist())
    assert zeros == {"thin": {0}, "wide": {-1}, "tiny": {0}}


def test_minimum_sizes_select_the_shifted_weights(tmp_path):
    amx = load_target("onnxruntime-cpu-amx")
    everything = replace(amx, weight_zero_point=replace(amx.weight_zero_point, min_k=1, min_macs=1))
    _, plan, emitted = file_for(everything, BUILDERS["depthwise"](), tmp_path)
    zero_points = [n for n in emitted.graph.initializers.values() if "zero_point" in (n.name or "")]
    signed = [constant(v) for v in zero_points if constant(v).dtype == np.int8]
    # The depthwise convolution of the three is excluded: its kernel requires the zero point 0.
    assert sum(bool((zero == -1).all()) for zero in signed) == len(plan.sites) - 1 == 2


def test_tensorrt_reads_residual_sums_and_biases_its_way(tmp_path):
    model, plan, emitted = file_for(load_target("tensorrt"), BUILDERS["residual"](), tmp_path)
    nodes = {n.name: n for n in emitted.graph}
    first, second = (v.producer().op_type for v in nodes["Add5"].inputs)
    assert (first, second) == ("Conv", "DequantizeLinear")
    for node in emitted.graph:
        if node.op_type == "Conv":
            assert constant(node.inputs[2]).dtype == np.float32
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constant(node.inputs[2])
            assert zero.dtype == np.int8 and not zero.any()
    assert (plan.spec("x").qmin, plan.spec("x").qmax) == (-128, 127)
    assert "y" not in plan.grid_of  # no reader asks for its codes
    assert model.graph.outputs[0].name == "y"


def test_fpga_grids_have_no_zero_point_and_no_idle_half(tmp_path):
    _, plan, emitted = file_for(load_target("fpga"), BUILDERS["residual"](), tmp_path)
    assert plan.spec("x").signed and not plan.spec("v1").signed
    for name in plan.grid_of:
        assert not plan.params(name).zero_point.any()
    assert {n.op_type for n in emitted.graph} == {"Quant", "Conv", "Relu", "Add"}


def test_npu_grids_are_asymmetric(tmp_path):
    _, plan, _ = file_for(load_target("npu-u16"), BUILDERS["conv_bn_relu"](), tmp_path)
    weights = [plan.params(site.weight) for site in plan.sites.values() if site.weight]
    assert all(w.container == np.uint8 and 0 < w.zero_point < 255 for w in weights)
    assert plan.params("x").container == np.uint16 and plan.params("x").zero_point > 0
