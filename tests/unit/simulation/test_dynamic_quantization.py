"""Dynamically quantized inputs: selected nodes, kernels of the runtime, bit equality."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from models import Arrays, Net, cpu, feeds_for, frozen_plan, graph_context, optimized, run, sqnr

from qtool.annotation.annotator import annotate
from qtool.calibration import MinMax
from qtool.emitters import emit_qdq
from qtool.emitters.qonnx import emit_qonnx
from qtool.emitters.qoperator import to_operators
from qtool.errors import RecipeError, UnsupportedError
from qtool.pipeline.calibration import grids
from qtool.quant.bit_widths import Bits, Widths
from qtool.quant.plan import QuantPlan, same_structure
from qtool.quant.plan_io import read_plan, write_plan
from qtool.recipe.model import Bits as RequestedBits
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.runtime.executor import Executor
from qtool.simulation.dynamic import dynamic_site_output
from qtool.simulation.fake_quant import Simulation
from qtool.verification.captured_outputs import capturable_values, with_outputs
from qtool.verification.kernels import kernels_part
from qtool.verification.layers.noise import measure_layers
from qtool.verification.parity import ParityCounts, compare
from qtool.weights.int16_saturation import at_risk

DYNAMIC = Bits(activations=None, dynamic=True)
HIDDEN = 64


def made(model: ir.Model, bits: Bits = DYNAMIC) -> tuple[ir.Model, QuantPlan]:
    plan = frozen_plan(model, bits)
    return emit_qdq(model, plan, cpu()), plan


def parity(
    model: ir.Model, emitted: ir.Model, plan: QuantPlan, feeds: Arrays, folder: Path
) -> ParityCounts:
    names = capturable_values(emitted, plan)
    values = run(with_outputs(emitted, names), feeds)
    arrays = {f"o{k}": values[name] for k, name in enumerate(names)}
    np.savez(folder / "0.npz", **arrays, **{f"i:{n}": a for n, a in feeds.items()})
    return compare(model, plan, folder, names, 1)


def kernels(emitted: ir.Model, plan: QuantPlan, folder: Path) -> dict[str, int]:
    ran = kernels_part(optimized(emitted, folder), plan, [])
    assert ran.stray_quantize == []
    return ran.integer


def encoder() -> Net:
    """Two layers that read one value, one that reads its own, and a Gemm on two dimensions."""
    net = Net(21)
    x = net.input("x", "N", 12, 64)
    x = net.add("Add", net.add("MatMul", x, net.weight(64, 96), name="up"), net.weight(96))
    x = net.add("Relu", x)
    q, k = (net.add("MatMul", x, net.weight(96, 64), name=name) for name in ("q", "k"))
    x = net.add("Reshape", net.add("Add", q, k), net.const(np.array([-1, 64])))
    return net.output(
        net.add("Gemm", x, net.weight(40, 64), net.weight(40), transB=1, out="y", name="head")
    )


def recurrent(op: str = "LSTM", directions: int = 1, extra: str = "", **attributes) -> Net:
    """20 steps of 24 numbers; ``extra`` names optional inputs: lengths, states, peepholes."""
    net, gates = Net(21), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    bound = HIDDEN**-0.5

    def uniform(*shape: int) -> str:
        return net.const(net.rng.uniform(-bound, bound, shape))

    x = net.input("x", 20, 3, 40)
    inputs = [
        x,
        uniform(directions, gates * HIDDEN, 40),
        uniform(directions, gates * HIDDEN, HIDDEN),
    ]
    inputs.append(uniform(directions, 2 * gates * HIDDEN))
    inputs.append(net.const(np.array([20, 3, 11], np.int32)) if "lengths" in extra else "")
    states = [uniform(directions, 3, HIDDEN) if "states" in extra else "" for _ in range(2)]
    inputs += states if op == "LSTM" else states[:1]
    inputs += [uniform(directions, 3 * HIDDEN)] if "peepholes" in extra else []
    if directions == 2:
        attributes["direction"] = "bidirectional"
    outs = "s h c" if op == "LSTM" else "s h"
    net.add(op, *inputs, out=outs, name="rnn", hidden_size=HIDDEN, **attributes)
    return net.output(*outs.split())


def classifier(op: str) -> Net:
    """Network that reads the last state only, not the sequence of states."""
    net = recurrent(op)
    net.outputs.clear()
    net.nodes[-1].output[0] = ""
    x = net.add("Reshape", "h", net.const(np.array([-1, HIDDEN])))
    return net.output(
        net.add("Gemm", x, net.weight(32, HIDDEN), net.weight(32), transB=1, out="y", name="head")
    )


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_an_encoder_runs_on_fused_integer_kernels_bit_for_bit(granularity, tmp_path):
    net = encoder()
    model, feeds = net.model(), feeds_for(net.model(), rows=2)
    emitted, plan = made(model, replace(DYNAMIC, granularity=granularity))
    assert list(plan.dynamic) == ["up", "q", "k", "head"] and not plan.sites
    assert set(plan.float_nodes) == {n.name for n in model.graph} - set(plan.dynamic)
    assert kernels(emitted, plan, tmp_path) == {
        "DynamicQuantizeMatMul": 2,  # up, with the bias behind it; head, on transposed codes
        "MatMulIntegerToFloat": 2,  # q and k share one grid
    }
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30
    counts = parity(model, emitted, plan, feeds, tmp_path)
    assert counts.integer.total == 2 * 12 * (96 + 64 + 64 + 40) and counts.integer.off == 0
    noise = measure_layers(model, plan, [feeds])
    assert noise.keys() == plan.dynamic.keys()
    assert all(30 < (part.alone.db or 0) < 60 for part in noise.values())


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("rows", [1, 48])
def test_products_are_exact_on_scales_that_make_ties(rows, transposed, tmp_path):
    net = Net(21)
    shape = (100, 33) if transposed else (33, 100)
    inputs = [net.input("x", rows, 33), net.weight(*shape, name="w"), net.weight(100, name="b")]
    net.output(net.add("Gemm", *inputs, out="y", name="op", transB=transposed))
    model, rng = net.model(), np.random.default_rng(rows)
    first = frozen_plan(model, DYNAMIC)
    scale = rng.choice([0.01, 0.02, 0.03, 2**-6, 0.0123], 100).astype(np.float32)
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    grids = {**first.grids, "w": replace(first.params("w"), scale=scale)}
    plan = replace(first, grids=grids, codes={"w": codes})
    emitted, site = emit_qdq(model, plan, cpu()), plan.dynamic["op"]
    bias = torch.tensor(model.graph.initializers["b"].const_value.numpy())
    in_one_step = 0
    for x in (
        rng.normal(0, 1, (rows, 33)) * 10.0 ** rng.integers(-6, 6),
        np.rint(rng.normal(0, 20, (rows, 33))) * 0.02,
        np.rint(rng.uniform(-255, 255, (rows, 33))) / 2 * 0.01,
        -rng.uniform(0, 1, (rows, 33)),
        np.zeros((rows, 33)),
    ):
        feeds = {"x": x.astype(np.float32)}
        got = run(emitted, feeds)["y"]
        inputs = {"x": torch.from_numpy(feeds["x"]), "w": torch.zeros(1), "b": bias}
        output = dynamic_site_output(model, plan, site, inputs.__getitem__, torch.zeros(1))
        np.testing.assert_array_equal(output.numpy(), got)
        # The counterexample: one rounding for product and sum, as in a fused multiply-add.
        low, high = min(feeds["x"].min(), 0), max(feeds["x"].max(), 0)
        step = np.float32((high - low) / np.float32(255)) or np.float32(1)
        zero = np.rint(-low / step)
        centred = np.clip(np.rint(feeds["x"] / step) + zero, 0, 255) - zero
        sums = centred.astype(np.float64) @ (codes.T if transposed else codes)
        in_one_step += int(((sums * (step * scale) + bias.numpy()).astype(np.float32) != got).sum())
    assert kernels(emitted, plan, tmp_path) == {"DynamicQuantizeMatMul": 1}
    assert in_one_step > 0


RECURRENT = {
    "plain": {},
    "both directions": {"directions": 2},
    "reverse": {"direction": "reverse"},
    "lengths": {"extra": "lengths"},
    "both directions with lengths": {"directions": 2, "extra": "lengths"},
    "states and peepholes": {"extra": "states peepholes"},
    "clip": {"clip": 0.5},
}


@pytest.mark.parametrize("name", RECURRENT)
def test_an_lstm_is_rounded_as_the_runtime_does(name, tmp_path):
    net = recurrent(**RECURRENT[name])
    model, feeds = net.model(), feeds_for(net.model())
    emitted, plan = made(model)
    assert plan.dynamic["rnn"].outputs == ("s", "h", "c")
    assert kernels(emitted, plan, tmp_path) == {"DynamicQuantizeLSTM": 1}
    want, got = run(net.proto(), feeds), run(emitted, feeds)
    simulated, floats = Simulation(model, plan)(feeds), Executor(model)(feeds)
    for value in want:
        # The runtime clips the inputs of the gates, not the cell.
        np.testing.assert_allclose(floats[value].numpy(), want[value], rtol=0, atol=1e-6)
        assert sqnr(want[value], got[value]) > 30
        # Without the file's states, a state at a half may round otherwise and change later steps.
        assert sqnr(got[value], simulated[value].numpy()) > (35 if name == "clip" else 100)
    counts = parity(model, emitted, plan, feeds, tmp_path)
    assert counts.after_float.total == want["s"].size and counts.after_float.share <= 1e-3
    assert counts.after_float.largest <= 1


def test_an_lstm_that_does_not_round_its_state_would_be_seen(tmp_path, monkeypatch):
    from qtool.simulation import dynamic

    net = recurrent()
    model, feeds = net.model(), feeds_for(net.model())
    emitted, plan = made(model)
    real = dynamic.dynamic_fake_quantize
    monkeypatch.setattr(dynamic, "dynamic_fake_quantize", lambda x: real(x) if x.ndim == 3 else x)
    assert parity(model, emitted, plan, feeds, tmp_path).after_float.share > 1e-2


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_recurrent_classifier(op, tmp_path):
    net = classifier(op)
    model, feeds = net.model(), feeds_for(net.model())
    emitted, plan = made(model)
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30
    ran = kernels(emitted, plan, tmp_path)
    if op == "GRU":  # the runtime has no such kernel: its weights are codes in the file only
        assert list(plan.dynamic) == ["head"] and len(plan.weight_only) == 3
        assert ran == {"DynamicQuantizeMatMul": 1}
        assert plan.float_nodes["rnn"] == (
            "only MatMul, Gemm, LSTM find their input's grid while they run"
        )
        return
    assert ran == {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}
    # Parity compares the states step by step, also where the model has no name for them.
    assert plan.dynamic["rnn"].outputs == ("rnn_sequence", "h", "c")
    counts = parity(model, emitted, plan, feeds, tmp_path)
    assert counts.after_float.total == 20 * 3 * HIDDEN and counts.integer.off == 0


def test_single_layers_with_calibrated_ones(tmp_path):
    net = Net(21)
    x = net.add("Relu", net.conv(net.input("x", "N", 8, 6, 6), 8, 16))
    x = net.add("Reshape", net.conv(x, 16, 16), net.const(np.array([0, 16, 36])))
    both = [net.add("MatMul", x, net.weight(36, 48), name=name) for name in ("dynamic", "static")]
    net.output(net.add("MatMul", net.add("Add", *both), net.weight(48, 32), out="y", name="last"))
    model, feeds = net.model(), feeds_for(net.model())
    emitted, plan = made(model, Bits(layers={"dynamic": Widths(8, None, True)}))
    assert list(plan.dynamic) == ["dynamic"] and "static" in plan.sites and "last" in plan.sites
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30
    ran = kernels(emitted, plan, tmp_path)
    assert ran["DynamicQuantizeMatMul"] == 1 and ran["QLinearConv"] == 2
    counts = parity(model, emitted, plan, feeds, tmp_path)
    assert counts.integer.off == counts.after_float.off == 0 and counts.worst == {}
    simulated = Simulation(model, plan)(feeds)["y"].numpy()
    np.testing.assert_allclose(simulated, run(emitted, feeds)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", [4, 2])
def test_weights_of_fewer_bits_are_unpacked_for_the_same_kernels(weights, tmp_path):
    for net in (encoder(), recurrent()):
        model, feeds = net.model(), feeds_for(net.model(), rows=2)
        emitted, plan = made(model, replace(DYNAMIC, weights=weights))
        wide, whole = made(model)
        assert kernels(emitted, plan, tmp_path) == kernels(wide, whole, tmp_path)
        packed, plain = (len(ir.to_proto(m).SerializeToString()) for m in (emitted, wide))
        assert packed < plain * (weights / 8 + 0.35)
        counts = parity(model, emitted, plan, feeds, tmp_path)
        assert counts.integer.off == 0 and counts.after_float.share <= 1e-3


def test_a_table_that_is_also_looked_up_in_stays_one_table(tmp_path):
    net = Net(21)
    table = net.weight(64, 32, name="table")
    x = net.add("Gather", table, net.input("ids", "N", 5, dtype=7))
    x = net.add("MatMul", x, net.weight(32, 64), name="up")
    x = net.add("Reshape", x, net.const(np.array([-1, 64])))
    net.output(net.add("Gemm", x, table, out="y", name="tied"))
    feeds = {"ids": np.random.default_rng(0).integers(0, 64, (6, 5))}
    emitted, plan = made(net.model())
    assert list(plan.dynamic) == ["up", "tied"] and "table" in plan.weight_only
    assert sum("table_quantized" in name for name in emitted.graph.initializers) == 1
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30
    assert kernels(emitted, plan, tmp_path) == {"DynamicQuantizeMatMul": 2}


def declined(net: Net, name: str = "op", bits: Bits = DYNAMIC) -> str:
    plan = annotate(net.model(), cpu(), bits)
    assert name not in plan.dynamic
    return plan.float_nodes[name]


def product(op: str, shape: tuple[int, ...], x: tuple[int | str, ...], **attributes) -> Net:
    net = Net(21)
    return net.output(
        net.add(op, net.input("x", *x), net.weight(*shape), out="y", name="op", **attributes)
    )


def test_nodes_without_a_kernel_stay_float_with_a_reason():
    assert "with 128 weights, fewer than 1024" in declined(product("MatMul", (16, 8), ("N", 16)))
    assert "not a product" in declined(product("MatMul", (3, 32, 32), ("N", 3, 5, 32)))
    assert "not a product" in declined(product("MatMul", (64, 32), (64,)))
    assert "transposed" in declined(product("Gemm", (64, 32), (64, 5), transA=1))
    assert "alpha" in declined(product("Gemm", (64, 32), ("N", 64), alpha=0.5))
    blocks = replace(DYNAMIC, granularity="block", block=16)
    assert "a block" in declined(product("MatMul", (64, 32), ("N", 64)), bits=blocks)
    assert "only MatMul, Gemm, LSTM" in declined(
        product("Conv", (16, 8, 3, 3), ("N", 8, 9, 9)), bits=DYNAMIC
    )
    net = Net(21)
    x = net.input("x", "N", 64)
    net.output(net.add("MatMul", x, net.add("Transpose", x), out="y", name="op"))
    assert "computed, not constant" in declined(net)
    assert "knows no input_forget" in declined(recurrent(input_forget=1), "rnn")
    relu = {"activations": ["Sigmoid", "Relu", "Tanh"]}
    assert "activations Sigmoid, Relu" in declined(recurrent(**relu), "rnn")


def test_a_small_lstm_only_stores_its_codes(monkeypatch):
    monkeypatch.setattr("test_dynamic_quantization.HIDDEN", 32)
    assert "fewer than 24576" in declined(recurrent(), "rnn")
    assert len(annotate(recurrent().model(), cpu(), DYNAMIC).weight_only) == 2


def test_small_weights_of_a_large_lstm_are_codes_too(tmp_path):
    net = Net(21)
    x = net.input("x", 10, "N", 1)
    weights = [net.const(net.rng.uniform(-0.1, 0.1, (1, 512, size))) for size in (1, 128)]
    net.output(net.add("LSTM", x, *weights, out="y", name="rnn", hidden_size=128))
    emitted, plan = made(net.model())
    assert plan.weight_only == set(plan.dynamic["rnn"].weights) == {"c0", "c1"}
    assert kernels(emitted, plan, tmp_path) == {"DynamicQuantizeLSTM": 1}
    feeds = feeds_for(net.model())
    assert sqnr(run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]) > 30


def resolved(**bits: object) -> Bits:
    target = bits.pop("target", cpu())
    return resolve_bits(RequestedBits.model_validate(bits), encoder().model(), target)


def test_bits_of_a_recipe():
    model = encoder().model()
    everywhere = resolved(activations="dynamic")
    assert (
        everywhere == replace(DYNAMIC, block=0)
        and "up" in annotate(model, cpu(), everywhere).dynamic
    )
    for layer in ({"activations": "dynamic"}, "dynamic"):
        bits = resolved(layers={"op:MatMul": layer})
        plan = annotate(model, cpu(), bits)
        assert list(plan.dynamic) == ["up", "q", "k"] and "head" in plan.sites
    back = resolved(activations="dynamic", layers={"name:head": {"activations": 8}})
    assert back.layers["head"] == Widths(8, 8) and back.dynamic


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ({"weights": "float"}, "bits: weights: float with activations: dynamic has no kernel"),
        ({"granularity": {"block": 32}}, "bits.granularity: integer kernels have one scale"),
        ({"target": replace(cpu(), dynamic={})}, "has no kernel that finds grids while it runs"),
    ],
)
def test_bits_without_a_kernel(bits, text):
    with pytest.raises(RecipeError, match=text.replace(".", r"\.")):
        resolved(activations="dynamic", **bits)


def test_other_formats():
    model, feeds = recurrent().model(), feeds_for(recurrent().model())
    emitted, plan = made(model)
    want = run(emitted, feeds)["s"]
    np.testing.assert_array_equal(run(to_operators(emitted, plan), feeds)["s"], want)
    with pytest.raises(UnsupportedError, match="rnn reads dynamic activations"):
        emit_qonnx(model, plan)


def test_nothing_is_calibrated_where_no_activation_has_a_grid():
    def never():
        raise AssertionError("a calibration sample was read")

    class Unread:
        batches = padded = property(lambda self: never())

    model = encoder().model()
    context = graph_context(model, dataset=Unread())
    plan = grids.make_grids(context, annotate(model, cpu(), DYNAMIC), MinMax())
    assert plan.log[-1] == "no activation has a grid, so no calibration sample was read"


def test_plans_on_disk_keep_it(tmp_path):
    plan = made(recurrent().model())[1]
    write_plan(plan, tmp_path)
    read = read_plan(tmp_path / "plan.json")
    assert read.dynamic == plan.dynamic and same_structure(read, plan)
    assert not same_structure(read, replace(plan, dynamic={}))


def test_pairs_of_products_may_saturate_without_vnni():
    model = recurrent().model()
    plan = made(model)[1]
    assert at_risk(model, plan) == ["rnn"]
    small = {name: (codes // 4).astype(np.int8) for name, codes in plan.codes.items()}
    assert at_risk(model, replace(plan, codes=small)) == []
