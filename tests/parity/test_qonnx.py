"""QONNX files: what ONNX Runtime and the qonnx package compute, against the simulation."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from models import BUILDERS, Net, bind, feeds_for, frozen_plan, rewritten, run

from qtool.emitters.qonnx import DOMAIN, bipolar_function, emit_qonnx, quant_function
from qtool.graph.queries import constant, nodes_by_name
from qtool.quant.freeze import freeze
from qtool.quant.primitives import Codebook, QuantParams, QuantSpec, quantize
from qtool.simulation.fake_quant import Simulation


def prepared(net: Net) -> ir.Model:
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def simulated(model, plan, feeds):
    return {name: t.numpy() for name, t in Simulation(model, plan)(feeds).items()}


def assert_equal_but_for_sums(want, got, plan):
    """Assert equality up to the order of float sums: rarely one code, at sums near a half."""
    assert want.keys() == got.keys()
    for name, array in want.items():
        params = plan.params(name)
        step = 0.0 if params is None else float(params.scale)
        off = np.abs(array - got[name])
        tiny = 1e-5 * max(float(np.abs(array).max()), 1.0)
        assert off.max() <= step + tiny, name
        assert np.mean(off > tiny) <= 1e-3, name


def in_package(model: ir.Model, feeds, monkeypatch) -> dict[str, np.ndarray]:
    """Compute outputs with the qonnx package, node by node."""
    qonnx = pytest.importorskip("qonnx.core.onnx_exec")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    make = qonnx.qonnx_make_model

    def older(*args, **kwargs):
        """Return the package's single-node models with an IR version that ONNX Runtime loads."""
        proto = make(*args, **kwargs)
        proto.ir_version = 10
        return proto

    monkeypatch.setattr(qonnx, "qonnx_make_model", older)
    proto = ir.to_proto(model)
    for value in proto.graph.input:  # the package needs fixed dimensions
        for dim, size in zip(
            value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
        ):
            dim.dim_value = size
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    wrapper = ModelWrapper(proto).transform(InferShapes())
    return qonnx.execute_onnx(wrapper, feeds)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore")  # of the package's own
def test_a_network_computes_what_was_simulated(name, monkeypatch):
    model = prepared(BUILDERS[name]())
    plan = frozen_plan(model)
    made = emit_qonnx(model, plan)
    feeds = feeds_for(model, seed=7)
    got = run(made, feeds)
    assert_equal_but_for_sums(simulated(model, plan, feeds), got, plan)
    assert_equal_but_for_sums(in_package(made, feeds, monkeypatch), got, plan)
    assert [v.name for v in made.graph.inputs] == [v.name for v in model.graph.inputs]
    assert [v.name for v in made.graph.outputs] == [v.name for v in model.graph.outputs]
    # Nothing of integers in it, and every node of the model still there.
    kinds = {n.op_type for n in made.graph} - {n.op_type for n in model.graph}
    assert kinds == {"Quant"}
    assert set(nodes_by_name(model.graph)) <= set(nodes_by_name(made.graph))
    assert all(v.uses() for v in made.graph.initializers.values())


def two_layers() -> tuple[ir.Model, str, str]:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8), out="mid")
    net.output(net.conv(x, 8, 4, out="y"))
    return prepared(net), "c0", "c2"


def quants(made: ir.Model) -> dict[str, ir.Node]:
    return {n.name or "": n for n in made.graph if n.domain == DOMAIN}


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 11, 16])
@pytest.mark.filterwarnings("ignore")
def test_any_width(bits, monkeypatch):
    model, weight, _ = two_layers()
    plan = frozen_plan(model)
    grids = dict(plan.grids)
    for name in (weight, "mid"):
        params = plan.params(name)
        spec = replace(params.spec, bits=bits)
        scale = params.scale * np.float32((params.spec.qmax) / spec.qmax)
        grids[plan.grid_of[name]] = QuantParams(spec, scale.astype(np.float32), params.zero_point)
    plan = freeze(model, replace(plan, grids=grids, codes={}))
    made = emit_qonnx(model, plan)
    quant_nodes = quants(made)
    assert float(constant(quant_nodes[f"{weight}_Quant"].inputs[3])) == bits
    assert float(constant(quant_nodes["mid_Quant"].inputs[3])) == bits
    assert quant_nodes["mid_Quant"].attributes["signed"].value == 0
    assert quant_nodes[f"{weight}_Quant"].attributes["narrow"].value == 1
    feeds = feeds_for(model, seed=3)
    got = run(made, feeds)
    assert_equal_but_for_sums(simulated(model, plan, feeds), got, plan)
    assert_equal_but_for_sums(in_package(made, feeds, monkeypatch), got, plan)
    on_grid = constant(quant_nodes[f"{weight}_Quant"].inputs[0])
    assert (
        len(np.unique(np.rint(on_grid / plan.params(weight).scale[:, None, None, None]))) <= 2**bits
    )


LEVELS = {"binary": [-1, 1], "ternary": [-1, 0, 1], "kmeans": [-101, -40, -7, 0, 3, 20, 66, 127]}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.filterwarnings("ignore")
def test_code_books(kind, monkeypatch):
    model, weight, other = two_layers()
    plan = frozen_plan(model)
    params, levels = plan.params(weight), np.array(LEVELS[kind], np.int32)
    scale = (params.scale * 127 / max(levels) / (1 if len(levels) > 3 else 2)).astype(np.float32)
    book = Codebook(replace(params.spec, bits=3), scale, params.zero_point, levels)
    grids = {**plan.grids, plan.grid_of[weight]: book}
    codes = {weight: quantize(constant(model.graph.initializers[weight]), book).astype(np.int8)}
    plan = freeze(model, replace(plan, grids=grids, codes=codes))
    made = emit_qonnx(model, plan)
    op = "BipolarQuant" if kind == "binary" else "Quant"
    node = quants(made)[f"{weight}_{op}"]
    assert len(node.inputs) == (2 if kind == "binary" else 4)
    if kind != "binary":
        assert float(constant(node.inputs[3])) == {"ternary": 2, "kmeans": 8}[kind]
    assert {f.name for f in made.functions.values()} == {"Quant", op}
    feeds = feeds_for(model, seed=3)
    got = run(made, feeds)
    assert_equal_but_for_sums(simulated(model, plan, feeds), got, plan)
    assert_equal_but_for_sums(in_package(made, feeds, monkeypatch), got, plan)
    assert f"{other}_Quant" in quants(made)


def test_values_with_float_readers_and_outputs_in_the_middle():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8), out="mid")
    net.add("Tanh", "x", out="raw")  # a float op on what a float source made: unrounded
    net.add("Tanh", "mid", out="rounded")
    net.output(net.conv(x, 8, 4, out="y"), "mid", "raw", "rounded")
    model = prepared(net)
    plan = frozen_plan(model)
    made = emit_qonnx(model, plan)
    feeds = feeds_for(model, seed=3)
    got = run(made, feeds)
    assert_equal_but_for_sums(simulated(model, plan, feeds), got, plan)
    np.testing.assert_array_equal(got["raw"], run(model, {"x": feeds["x"]})["raw"])
    assert len(np.unique(got["mid"])) <= 256 and len(np.unique(got["raw"])) > 256


SPECS = [
    QuantSpec(bits, signed, symmetric)
    for bits in (2, 4, 8)
    for signed, symmetric in ((True, True), (True, False), (False, False))
]


def function_model(function: ir.Function, inputs: int, **attributes) -> bytes:
    names = ["x", "scale", "zero", "bits"][:inputs]
    node = onnx.helper.make_node(function.name, names, ["y"], domain=DOMAIN, **attributes)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [info(n, 1, ["N"] if n == "x" else []) for n in names],
        [info("y", 1, ["N"])],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(DOMAIN, 1)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    proto.functions.append(ir.to_proto(function))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def computed(file: bytes, *arrays) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(file, options)
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, map(np.asarray, arrays), strict=True)))[0]


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_the_function_is_the_package_s_operator(spec, narrow):
    pytest.importorskip("qonnx")
    from qonnx.custom_op.general.quant import quant

    signed = int(spec.signed)
    zero = np.float32(0 if spec.symmetric else 3)
    # Halves, both ends and beyond.
    x = (np.arange(-700, 700) / 2 * np.float32(0.25)).astype(np.float32)
    scale, bits = np.float32(0.25), np.float32(spec.bits)
    file = function_model(
        quant_function(21), 4, signed=signed, narrow=narrow, rounding_mode="ROUND"
    )
    got = computed(file, x, scale, zero, bits)
    np.testing.assert_array_equal(got, quant(x, scale, zero, bits, signed, narrow, "ROUND"))
    assert len(np.unique(got)) == 2**spec.bits - narrow


def test_the_sign_function():
    pytest.importorskip("qonnx")
    from qonnx.custom_op.general.bipolar_quant import binary_quant

    x = np.array([-2, -0.0, 0, 1e-30, 5], np.float32)
    got = computed(function_model(bipolar_function(21), 2), x, np.float32(0.5))
    np.testing.assert_array_equal(got, binary_quant(x, np.float32(0.5)))
