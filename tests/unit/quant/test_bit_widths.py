"""Widths below 8 bits: who gets which grid, and that the file computes exactly the plan."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    BUILDERS,
    Net,
    bind,
    cpu,
    feeds_for,
    make_grids,
    make_plan,
    optimized,
    rewritten,
    run,
    sqnr,
)

from qtool.calibration import MinMax
from qtool.emitters import emit_qdq
from qtool.errors import RecipeError
from qtool.loading import infer_shapes
from qtool.quant.bit_widths import FLOAT, Bits, Widths
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import PerBlock
from qtool.recipe.model import Bits as RequestedBits
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.simulation.fake_quant import Simulation
from qtool.simulation.ort_kernels import OrtKernels
from qtool.weights import SCHEMES


def residual_net() -> Net:
    """conv, then two blocks of two convs with identity shortcuts, pool, linear."""
    net = Net(opset=21)
    x = net.input("x", "N", 3, 8, 8)
    x = net.add("Relu", net.conv(x, 3, 8, name="stem"))
    for k in range(2):
        y = net.add("Relu", net.conv(x, 8, 8, name=f"a{k}"))
        y = net.conv(y, 8, 8, name=f"b{k}")
        x = net.add("Relu", net.add("Add", x, y, name=f"add{k}"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    gemm = net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y", name="head")
    return net.output(gemm)


def planned(net: Net, bits: Bits, scheme=None) -> tuple[ir.Model, QuantPlan]:
    """Rewritten, annotated, calibrated by min-max on random data, frozen."""
    model = net.model()
    bind(model, feeds_for(model))
    infer_shapes(model)
    plan = make_plan(model, cpu(), bits)
    grids = make_grids(model, plan, [feeds_for(model, seed=1)], MinMax(), scheme)
    return model, freeze(model, grids)


def executed(emitted: ir.Model, folder: Path) -> Counter[str]:
    return Counter(n.op_type for n in optimized(emitted, folder).graph)


EDGES = {"stem": Widths(8, 8), "head": Widths(8, 8)}


def test_layers_read_narrow_codes_and_sums_wide_ones():
    _, plan = planned(residual_net(), Bits(4, 3, layers=EDGES))
    widths = {s.name: plan.spec(s.inputs[0]).bits for s in plan.sites.values() if s.weight}
    assert widths == {"stem": 8, "a0": 3, "b0": 3, "a1": 3, "b1": 3, "head": 8}
    weights = {s.name: plan.spec(s.weight).bits for s in plan.sites.values() if s.weight}
    assert weights == {"stem": 8, "a0": 4, "b0": 4, "a1": 4, "b1": 4, "head": 8}
    for name in ("add0", "add1"):
        assert all(plan.spec(v).bits == 8 for v in plan.sites[name].inputs)
    # The residual stream is read by a sum and by a convolution: it is rounded twice, by LeakyRelu.
    assert [s.op for s in plan.sites.values()].count("LeakyRelu") == 2


def test_without_narrow_layers_nothing_is_added():
    model, plan = planned(residual_net(), Bits(4, 8))
    assert not any(n.op_type == "LeakyRelu" for n in model.graph) and plan.sites


def test_a_shared_weight_takes_the_finer_width():
    net = Net(opset=21)
    x, w = net.input("x", "N", 4, 6, 6), net.weight(4, 4, 1, 1)
    x = net.add("Relu", net.add("Conv", x, w, name="one"))
    net.output(net.add("Conv", x, w, name="two", out="y"))
    _, plan = planned(net, Bits(2, 8, layers={"two": Widths(6, 8)}))
    assert plan.spec(w).bits == 6


def codes_of(emitted: ir.Model, feeds, names) -> dict[str, np.ndarray]:
    """What the runtime computes for named values, every optimization on."""
    copy = ir.Model(emitted.graph.clone(), ir_version=emitted.ir_version)
    have = {v.name for v in copy.graph.outputs}
    for node in copy.graph:
        copy.graph.outputs.extend(v for v in node.outputs if v.name in names and v.name not in have)
    return run(copy, feeds)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(2, 8),
    st.sampled_from(["uniform", "kmeans"]),
    st.sampled_from(["tensor", "channel"]),
    st.booleans(),
    st.sampled_from(["residual", "own", "transformer_mlp"]),
)
def test_the_file_computes_the_plan_to_the_last_bit(weights, acts, scheme, grain, edges, kind):
    net = residual_net() if kind == "own" else BUILDERS[kind]()
    bits = Bits(weights, acts, granularity=grain, layers=EDGES if edges and kind == "own" else {})
    model, plan = planned(net, bits, SCHEMES[scheme]())
    emitted = emit_qdq(model, plan, cpu())
    feeds = feeds_for(model, seed=5)
    names = {f"{v}_quantized" for v in plan.grid_of if v not in plan.codes}
    seen = codes_of(emitted, feeds, names)
    codes = {n.removesuffix("_quantized"): a for n, a in seen.items() if n.endswith("_quantized")}
    kernels = OrtKernels(model, plan)
    compared = 0
    for value, array in codes.items():
        spec = plan.spec(value)
        assert spec.qmin <= array.min() and array.max() <= spec.qmax
    for site in plan.sites.values():
        if site.output in codes and all(v in codes or v in plan.codes for v in site.inputs):
            found = kernels.site(site, codes).numpy()
            np.testing.assert_array_equal(found, codes[site.output].astype(np.float32))
            compared += 1
    assert compared or kind == "transformer_mlp"
    simulated = Simulation(model, plan)(feeds, ["y"])["y"].numpy()
    spread = np.abs(simulated).max()
    # One code of difference may follow a tie; never more than a step of the coarsest grid.
    assert np.abs(simulated - seen["y"]).mean() <= 0.02 * spread


@pytest.mark.parametrize("weights", [8, 4, 2, 1])
@pytest.mark.parametrize("acts", [8, 4])
def test_narrow_layers_run_in_integer_kernels(weights, acts, tmp_path):
    model, plan = planned(residual_net(), Bits(weights, acts, layers=EDGES))
    ran = executed(emit_qdq(model, plan, cpu()), tmp_path)
    assert ran["QLinearConv"] == 5 and ran["QGemm"] == 1 and ran["QLinearAdd"] == 2
    assert not ran["Conv"] and not ran["Gemm"] and not ran["FusedConv"]
    assert ran["QLinearLeakyRelu"] == (2 if acts == 4 else 0)


@pytest.mark.parametrize("grain", ["tensor", "channel", "block"])
@pytest.mark.parametrize("width", [8, 5, 4, 2, 1])
def test_weight_only_files_compute_in_floats(width, grain, tmp_path):
    net = Net(opset=21)
    x = net.input("x", "N", 64)
    x = net.add("Relu", net.add("MatMul", x, net.weight(64, 48), name="one"))
    net.output(net.add("Gemm", x, net.weight(32, 48), net.weight(32), transB=1, out="y"))
    model, plan = planned(net, Bits(width, None, granularity=grain, block=16))
    assert not plan.sites and len(plan.weight_only) == 2
    if grain == "block":
        found = {plan.spec(w).granularity for w in plan.weight_only}
        assert found == {PerBlock(0, 16), PerBlock(1, 16)}
    emitted = emit_qdq(model, plan, cpu())
    feeds = feeds_for(model, seed=2)
    want = Simulation(model, plan)(feeds, ["y"])["y"].numpy()
    np.testing.assert_allclose(run(emitted, feeds)["y"], want, rtol=1e-4, atol=1e-5)
    ran = executed(emitted, tmp_path)
    # Everything in front of the products is folded when the file is loaded.
    assert set(ran) <= {"Gemm", "FusedGemm", "MatMul", "Relu"}, ran
    if width == 8:
        assert sqnr(run(net.model(), feeds)["y"], want) > 35


def test_more_bits_are_never_worse():
    net = residual_net()
    feeds = feeds_for(net.model(), seed=3)
    float_out = run(net.model(), feeds)["y"]
    found = []
    for width in (8, 6, 4, 3, 2):
        model, plan = planned(net, Bits(width, 8))
        found.append(sqnr(float_out, Simulation(model, plan)(feeds, ["y"])["y"].numpy()))
    assert found == sorted(found, reverse=True) and found[0] > 30


def resolved(target=None, **asked) -> Bits:
    model = residual_net().model()
    return resolve_bits(RequestedBits(**asked), model, target or cpu())


def test_patterns_resolve_to_widths():
    bits = resolved(weights=4, activations=4, layers={"first": 8, "name:a*": {"weights": 2}})
    assert bits.layers["stem"] == Widths(8, 8)
    assert bits.layers["a0"] == bits.layers["a1"] == Widths(2, 4)
    assert resolved(layers={"op:Gemm": "float"}).layers["head"] == FLOAT
    assert resolved(weights=4, activations="float", granularity={"block": 8}).block == 8


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"weights": "float"}, "bits: weights: float with activations: 8 has no kernel"),
        ({"layers": {"first": {"weights": "float"}}}, "bits.layers.first: weights: float with"),
        ({"weights": 12}, "bits.weights: 12, but target onnxruntime-cpu takes 1 to 8 bits"),
        ({"granularity": {"block": 8}}, "write activations: float, or granularity: channel"),
        ({"layers": {"name:zzz": 4}}, "zzz"),
    ],
)
def test_widths_that_cannot_be(asked, said):
    with pytest.raises(RecipeError) as error:
        resolved(**asked)
    assert said in str(error.value)


def test_binary_weights_are_signs():
    _, plan = planned(residual_net(), Bits(1, 8))
    for site in plan.sites.values():
        if site.weight:
            assert set(np.unique(plan.codes[site.weight])) == {-1, 1}


def test_rewritten_networks_take_every_width():
    for _name, build in BUILDERS.items():
        model = build().model()
        bind(model, feeds_for(model))
        rewritten(model)
        plan = make_plan(model, cpu(), Bits(3, 4))
        grids = make_grids(model, plan, [feeds_for(model, seed=1)], MinMax())
        emitted = emit_qdq(model, freeze(model, grids), cpu())
        for value in run(emitted, feeds_for(model)).values():
            assert np.isfinite(value).all()


def test_codes_of_16_bits_are_padded_in_floats():
    model = residual_net().model()
    bind(model, feeds_for(model))
    rewritten(model)
    assert any(node.op_type == "Pad" for node in model.graph)
    plan = make_plan(model, cpu(), Bits(8, 16))
    grids = make_grids(model, plan, [feeds_for(model, seed=1)], MinMax())
    feeds = feeds_for(model, seed=5)
    found = run(emit_qdq(model, freeze(model, grids), cpu()), feeds)["y"]
    assert np.abs(found - run(model, feeds)["y"]).max() < 0.05 * np.abs(found).max()


@pytest.mark.parametrize(
    ("bits", "most", "kind"), [(16, 8, "FLOAT"), (16, 16, "UINT16"), (8, 8, "UINT8")]
)
def test_the_target_says_how_wide_codes_an_op_moves(bits, most, kind):
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8, name="a"))
    moved = net.add("DepthToSpace", x, blocksize=2, name="move")
    model = net.output(net.conv(moved, 2, 4, name="b")).model()
    bind(model, feeds_for(model))
    rule = replace(cpu().ops["DepthToSpace"], on_codes_bits=most)
    target = replace(cpu(), ops={**cpu().ops, "DepthToSpace": rule})
    plan = make_plan(model, target, Bits(8, bits))
    grids = make_grids(model, plan, [feeds_for(model, seed=1)], MinMax())
    emitted = emit_qdq(model, freeze(model, grids), target)
    infer_shapes(emitted)
    move = next(node for node in emitted.graph if node.name == "move")
    assert move.inputs[0].dtype == ir.DataType[kind]


def test_a_single_value_has_16_bits_where_its_reader_asks_for_them():
    noise = {}
    for width in (8, 16):
        net = Net(opset=21)
        x = net.add("Relu", net.add("Gemm", net.input("x", "N", 8), net.weight(8, 16), name="a"))
        model = net.output(net.add("Gemm", x, net.weight(16, 4), name="b", out="y")).model()
        bind(model, feeds_for(model))
        plan = make_plan(model, cpu(), Bits(layers={"b": Widths(8, width)}))
        assert [plan.spec(name).bits for name in ("x", x)] == [8, width]
        grids = make_grids(model, plan, [feeds_for(model, seed=1)], MinMax())
        emitted = emit_qdq(model, freeze(model, grids), cpu())
        feeds = feeds_for(model, seed=1)
        noise[width] = np.square(run(emitted, feeds)["y"] - run(model, feeds)["y"]).sum()
    assert noise[16] < noise[8]
