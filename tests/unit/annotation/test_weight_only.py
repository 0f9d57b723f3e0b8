"""Weights that float ops read: codes in the file, equal floats for runtime and simulation."""

import numpy as np
import onnx_ir as ir
import pytest
from models import Net, cpu, feeds_for, optimized, quantized, run, sqnr

from qtool.annotation.annotator import annotate
from qtool.annotation.weight_only import MIN_SIZE
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.simulation.fake_quant import Simulation


def embedding(rows: int = 64, readers: int = 1) -> Net:
    net = Net()
    ids = net.input("ids", "N", 5, dtype=7)
    table = net.weight(rows, 32, name="table")
    x = net.add("Gather", table, ids, name="embed", out="e")
    if readers == 2:
        x = net.add("Add", x, net.add("ReduceMean", table, out="mean", keepdims=0))
    x = net.add("MatMul", x, net.weight(32, 8, name="w"), name="head", out="y")
    return net.output(x)


def ids(rows: int = 64) -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(0).integers(0, rows, (6, 5))}


def test_a_large_embedding_is_stored_as_codes_and_read_as_floats(tmp_path):
    net = embedding()
    model = net.model()
    want = run(net.proto(), ids())["y"]
    plan = annotate(model, cpu(), Bits())
    assert plan.weight_only == {"table"} and plan.float_nodes["embed"]
    from qtool.calibration import MinMax
    from qtool.calibration.collect import choose_grids, collect, observed_values
    from qtool.emitters import emit_qdq
    from qtool.quant.freeze import freeze
    from qtool.weights.grids import weight_grids

    stats = collect(model, observed_values(model, plan), [ids()], histograms=False, threads=1)
    plan = freeze(model, weight_grids(model, choose_grids(plan, stats, MinMax())))
    emitted = emit_qdq(model, plan, cpu())
    assert plan.codes["table"].dtype == np.int8
    assert "table" not in emitted.graph.initializers
    assert emitted.graph.initializers["table_quantized"].dtype == ir.DataType.INT8
    got = run(emitted, ids())["y"]
    assert sqnr(want, got) > 35
    simulated = Simulation(model, plan)(ids())["y"].numpy()
    np.testing.assert_allclose(simulated, got, atol=1e-6 * np.abs(got).max())
    remaining = [n.op_type for n in optimized(emitted, tmp_path).graph]
    # Folded at load: nothing is widened while the network runs.
    assert "Cast" not in remaining and "Mul" not in remaining


def test_a_small_one_and_one_that_another_op_reads_stay_float():
    small = MIN_SIZE // 32 - 1
    assert annotate(embedding(small).model(), cpu(), Bits()).weight_only == frozenset()
    assert annotate(embedding(64, readers=2).model(), cpu(), Bits()).weight_only == frozenset()


def test_a_float_layer_has_no_weight_only_codes():
    bits = Bits(layers=dict.fromkeys({"embed"}, FLOAT))
    assert annotate(embedding().model(), cpu(), bits).weight_only == frozenset()


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_weights_are_stored(op, gates):
    net = Net()
    x = net.input("x", 7, "N", 16)
    w = net.weight(1, gates * 40, 16, name="W")
    r = net.weight(1, gates * 40, 40, name="R")
    y = net.add(op, x, w, r, out="h", hidden_size=40)
    net.output(net.add("MatMul", y, net.weight(40, 4), out="y"))
    model = net.model()
    large = {"R"} if gates == 1 else {"W", "R"}
    assert annotate(model, cpu(), Bits()).weight_only == large
    feeds = feeds_for(model)
    want = run(net.proto(), feeds)["y"]
    emitted, _ = quantized(model)
    assert sqnr(want, run(emitted, feeds)["y"]) > 25
