"""What the QDQ file leaves out, and that the runtime does not mind."""

from dataclasses import replace

import numpy as np
import pytest
from models import BUILDERS, Net, bind, cpu, feeds_for, frozen_plan, optimized, rewritten, run

from qtool.emitters import emit_qdq
from qtool.graph.queries import by_name, constant


def pair(net: Net):
    """The same plan with and without what a runtime folds."""
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    plan = frozen_plan(model)
    return [
        emit_qdq(model, plan, replace(cpu(), packing=forms)) for forms in ((), ("scales",))
    ], feeds_for(model, seed=5)


def size(model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values())


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_kernels_and_bits(name, tmp_path):
    (full, short), feeds = pair(BUILDERS[name]())
    assert size(short) < size(full)
    kernels = [[n.op_type for n in optimized(m, tmp_path).graph] for m in (full, short)]
    assert kernels[0] == kernels[1]
    want, got = (run(m, feeds) for m in (full, short))
    for key, array in want.items():
        np.testing.assert_array_equal(got[key], array)


def dequantizers(model, op: str, position: int):
    return [n.inputs[position].producer() for n in model.graph if n.op_type == op]


def test_zero_points_stay_where_gemm_reads_them():
    (full, short), _ = pair(BUILDERS["conv_bn_relu"]())
    assert {len(n.inputs) for n in dequantizers(full, "Conv", 1)} == {3}
    assert {len(n.inputs) for n in dequantizers(short, "Conv", 1)} == {2}
    assert {len(n.inputs) for n in dequantizers(short, "Gemm", 1)} == {3}


def one_conv(channels: int, name: str = "w") -> Net:
    net = Net()
    w = net.weight(channels, 3, 3, 3, name=name)
    x = net.add("Conv", net.input("x", "N", 3, 8, 8), w, net.weight(channels, name="b"))
    return net.output(net.conv(x, channels, 4, out="y"))


def test_a_bias_scale_is_a_product_only_where_that_is_smaller():
    (_, large), _ = pair(one_conv(32))
    scale = by_name(large.graph)["b_scale"]
    assert scale.producer().op_type == "Mul"
    assert [v.name for v in scale.producer().inputs] == ["x_scale", "w_padded_scale"]
    (_, small), _ = pair(one_conv(4, "a_weight_with_a_long_name"))
    assert constant(by_name(small.graph)["b_scale"]) is not None


def test_a_scale_that_is_not_the_product_stays():
    model = one_conv(32).model()
    bind(model, feeds_for(model))
    plan = frozen_plan(model)
    bias = plan.params("b")
    odd = replace(bias, scale=np.nextafter(bias.scale, np.float32(1)))
    plan = replace(plan, grids={**plan.grids, plan.grid_of["b"]: odd})
    emitted = emit_qdq(model, plan, cpu())
    np.testing.assert_array_equal(constant(by_name(emitted.graph)["b_scale"]), odd.scale)


@pytest.mark.parametrize("op", ["Relu", "Clip", "Clip without a limit"])
@pytest.mark.parametrize("shape", [("N", 16), ("N", 4, 16)])
def test_an_activation_of_floats_leaves_the_layer_in_integers(op, shape, tmp_path):
    """ONNX Runtime would fuse the two into a float Gemm."""
    net = Net(opset=21, ir_version=10)
    y = net.add("MatMul", net.input("x", *shape), net.weight(16, 32))
    limits = [] if op == "Relu" else [net.const(np.float32(-1)), net.const(np.float32(1))]
    y = net.add(op.split()[0], net.add("Add", y, net.weight(32)), *limits[: 1 + (op == "Clip")])
    model = net.output(net.add("Exp", y, out="y")).model()
    feeds = feeds_for(model)
    bind(model, feeds)
    rewritten(model)
    plan = frozen_plan(model)
    emitted = emit_qdq(model, plan, cpu())
    kernels = [n.op_type for n in optimized(emitted, tmp_path).graph]
    assert "QGemm" in kernels and "DequantizeLinear" not in kernels
    want, got = run(net.proto(), feeds)["y"], run(emitted, feeds)["y"]
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()
    rules = {name: replace(rule, unfused=()) for name, rule in cpu().ops.items()}
    fused = emit_qdq(model, plan, replace(cpu(), ops=rules))
    assert "QGemm" not in [n.op_type for n in optimized(fused, tmp_path).graph]
