"""Rewrites of linear layers, pooling, slices, constants and identities keep the function."""

import numpy as np
import onnx_ir as ir
import pytest
from models import BUILDERS, Net, changed, feeds_for, ops, rewritten, run

from qtool.graph.queries import attribute, dims
from qtool.rewrites import REWRITES

# Linear layers


@pytest.mark.parametrize("shape", [("N", 8), ("N", 5, 8), (2, 3, 5, 8)])
@pytest.mark.parametrize("bias", ["none", "right", "left", "row", "matrix", "two readers"])
def test_matmul_becomes_gemm(shape, bias):
    net = Net()
    x = net.input("x", *shape)
    y = net.add("MatMul", x, net.weight(8, 4, name="w"), name="linear", out="product")
    if bias in ("right", "left", "row", "two readers"):
        b = net.weight(1, 4) if bias == "row" else net.weight(4)
        y = net.add("Add", *((y, b) if bias != "left" else (b, y)), out="sum")
    elif bias == "matrix":
        y = net.add("Add", y, net.weight(2, 4) if len(shape) == 2 else net.weight(5, 4), out="sum")
    if bias == "two readers":
        net.output("product")
    feeds = {"x": np.float32(net.rng.normal(size=[d if isinstance(d, int) else 2 for d in shape]))}
    model, count = changed(net.output(y), "matmul_to_gemm", feeds=feeds)
    (gemm,) = [n for n in model.graph if n.op_type == "Gemm"]
    assert (count, gemm.name, gemm.inputs[1].name) == (1, "linear", "w")
    assert len(gemm.inputs) == (3 if bias in ("right", "left", "row") else 2)
    assert "MatMul" not in ops(model) and ops(model).count("Reshape") == 2 * (len(shape) > 2)


def attention_and_feed_forward():
    """Three layers that read one value, heads that are joined again, and two layers in a row."""
    net = Net(opset=20, ir_version=10)
    x = net.input("x", "N", 6, 8)
    parts = [net.add("MatMul", x, net.weight(8, 8)) for _ in range(3)]
    parts = [net.add("Add", part, net.weight(8)) for part in parts]
    split = net.const(np.array([-1, 6, 2, 4])), net.const(np.array([-1, 6, 2, 4]))
    q, k = (net.add("Reshape", part, sizes) for part, sizes in zip(parts, split, strict=False))
    v = net.add("Reshape", parts[2], net.const(np.array([0, 6, 2, 4])))
    y = net.add("Mul", net.add("Softmax", net.add("Mul", q, k)), v)
    y = net.add("Reshape", y, net.const(np.array([-1, 6, 8])))
    y = net.add("Add", net.add("MatMul", y, net.weight(8, 8)), x)
    hidden = net.add(
        "Gelu", net.add("Add", net.add("MatMul", y, net.weight(8, 12)), net.weight(12))
    )
    return net.output(net.add("Add", net.add("MatMul", hidden, net.weight(12, 8)), y, out="y"))


def test_layers_share_reshapes():
    model, count = changed(attention_and_feed_forward(), "matmul_to_gemm")
    assert count == 6
    # One in front of three layers, one behind each, and two where a size copies that of the input;
    # one around the next layer on each side, and around two layers in a row.
    assert ops(model).count("Reshape") == (1 + 2 + 2) + (1 + 1) + (1 + 1)
    readers = [len(node.outputs[0].uses()) for node in model.graph if node.op_type == "Reshape"]
    assert max(readers) == 3
    gelu = next(node for node in model.graph if node.op_type == "Gelu")
    assert dims(gelu.outputs[0])[1:] == (12,) and gelu.inputs[0].producer().op_type == "Gemm"


def test_matmul_that_is_no_linear_layer_is_declined():
    net = Net()
    x = net.input("x", "N", 4, 4)
    left = net.add("MatMul", net.weight(4, 4), x, out="left")
    both = net.add("MatMul", x, x, out="both")
    stack = net.add("MatMul", x, net.const(net.rng.normal(size=(1, 4, 3))), out="stack")
    model, count = changed(net.output(left, both, stack), "matmul_to_gemm")
    assert count == 0 and ops(model) == ["MatMul"] * 3


def test_matmul_with_two_unknown_dimensions_or_requested_float_is_declined():
    net = Net()
    net.output(net.add("MatMul", net.input("x", "N", "T", 8), net.weight(8, 4), name="m", out="y"))
    assert rewritten(net.model(), "matmul_to_gemm") == {"matmul_to_gemm": 0}
    assert changed(net, "matmul_to_gemm", floats=frozenset({"m"}))[1] == 0


def test_the_weights_give_a_width_that_inference_leaves_unknown():
    net = Net()
    net.add("Slice", net.input("x", "N", 5, 12), *(net.const(np.array([k])) for k in (0, 8, 2)))
    net.output(net.add("MatMul", "v0", net.weight(8, 4), out="y"))
    model = net.model()
    model.graph.node(0).outputs[0].shape = ir.Shape(["N", 5, None])
    assert REWRITES["matmul_to_gemm"](model, lambda node: True) == 1
    feeds = feeds_for(model)
    np.testing.assert_allclose(run(model, feeds)["y"], run(net.proto(), feeds)["y"], atol=1e-5)


def test_integer_matmul_is_declined():
    net = Net()
    x = net.add("Cast", net.input("x", "N", 4), to=6)
    y = net.add("MatMul", x, net.const(np.ones((4, 2), np.int32)))
    assert changed(net.output(net.add("Cast", y, to=1, out="y")), "matmul_to_gemm")[1] == 0


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(
    ("alpha", "beta", "shape", "count"),
    [
        (1.0, 1.0, (4,), 0),
        (0.5, 1.0, (4,), 1),
        (1.0, 3.0, (4,), 1),
        (0.5, 0.0, (4,), 1),
        (0.5, 2.0, None, 1),
        (1.0, 2.0, None, 0),
        (1.0, 1.0, (1, 4), 1),
        (2.0, 0.5, (1,), 1),
        (2.0, 0.5, (), 1),
        (2.0, 0.5, (4, 4), 0),
        (2.0, 0.5, (4, 1), 0),
    ],
)
def test_gemm_is_normalized(transposed, alpha, beta, shape, count):
    net = Net()
    weight = net.weight(*((4, 6) if transposed else (6, 4)))
    bias = [] if shape is None else [net.const(net.rng.normal(size=shape))]
    x = net.input("x", 4, 6)
    y = net.add("Gemm", x, weight, *bias, alpha=alpha, beta=beta, transB=transposed, out="y")
    model, applied = changed(net.output(y), "normalize_gemm")
    assert applied == count
    gemm = next(iter(model.graph))
    if count:
        assert (attribute(gemm, "alpha"), attribute(gemm, "beta")) == (1.0, 1.0)
        assert shape is None or dims(gemm.inputs[2]) == (4,)


# Pooling, slices, constants, identities, sharing


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(
    ("axes", "count"), [((2, 3), 1), ((-1, -2), 1), ((1, 2), 0), ((3,), 0), ((1, 2, 3), 0)]
)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduce_mean_is_pooling(opset, axes, count, keepdims):
    net = Net(opset=opset)
    x = net.input("x", "N", 4, 5, 6)
    inputs = [net.const(np.array(axes))] if opset == 18 else []
    attributes = {"axes": list(axes)} if opset == 13 else {}
    net.output(net.add("ReduceMean", x, *inputs, keepdims=keepdims, out="y", **attributes))
    model, applied = changed(net, "reduce_mean_to_global_average_pool")
    assert applied == count and ("GlobalAveragePool" in ops(model)) == bool(count)


def test_a_mean_of_integers_is_no_pooling():
    net = Net()
    x = net.add("Cast", net.input("x", "N", 4, 5, 6), to=6)
    y = net.add("ReduceMean", x, axes=[2, 3])
    assert (
        changed(
            net.output(net.add("Cast", y, to=1, out="y")), "reduce_mean_to_global_average_pool"
        )[1]
        == 0
    )


def sliced(net, x, starts, stops, axes, steps, out=""):
    arrays = [net.const(np.array(v)) for v in (starts, stops, axes, steps)]
    return net.add("Slice", x, *arrays, out=out)


@pytest.mark.parametrize(
    ("starts", "stops", "axes", "steps", "count"),
    [
        ([0, 0], [99, 2**63 - 1], [2, 3], [2, 3], 1),
        ([0, 0], [7, 2**63 - 1], [2, 3], [2, 3], 1),
        ([0], [9], [-1], [2], 1),
        ([1], [9], [3], [2], 0),
        ([0], [8], [3], [2], 0),
        ([0], [2**31 - 1], [1], [2], 0),
        ([0], [2**31 - 1], [2], [1], 0),
        ([-1], [-(2**31)], [3], [-1], 0),
    ],
)
def test_strided_slices_become_pools(starts, stops, axes, steps, count):
    net = Net()
    net.output(sliced(net, net.input("x", "N", 4, 7, 9), starts, stops, axes, steps, out="y"))
    assert changed(net, "strided_slice_to_max_pool")[1] == count


def test_a_chain_of_slices_becomes_one_pool_and_a_read_one_stays():
    net = Net()
    x = sliced(net, net.input("x", "N", 4, 7, 9), [0], [2**63 - 1], [2], [2], out="mid")
    sliced(net, x, [0], [2**63 - 1], [3], [2], out="y")
    model, count = changed(net.output("y"), "strided_slice_to_max_pool")
    assert (ops(model), count) == (["MaxPool"], 1)
    changed(net.output("mid"), "strided_slice_to_max_pool")


def test_constants_are_folded_but_graph_outputs_keep_their_names():
    net = Net()
    two = net.add("Add", net.const(np.ones(4)), net.const(1.0))
    net.output(net.add("Mul", net.input("x", "N", 4), net.add("Neg", two), out="y"))
    net.output(net.add("Neg", two, out="fixed"))
    model, count = changed(net, "fold_constants")
    assert count == 2 and ops(model) == ["Mul", "Neg"]


def test_random_and_sequence_nodes_are_not_folded():
    net = Net()
    noise = net.add("RandomNormal", shape=[4])
    net.add("Mul", noise, net.const(0.0), out="zero")
    s = net.add("SequenceInsert", net.add("SequenceEmpty"), net.input("x", "N", 4))
    net.output("zero", net.add("ConcatFromSequence", s, axis=0, out="y"))
    assert changed(net, "fold_constants")[1] == 0


def test_identities_go_and_graph_outputs_keep_their_names():
    net = Net()
    x = net.add("Identity", net.input("x", "N", 4))
    x = net.add("Dropout", net.add("Relu", net.add("Relu", x)))
    x = net.add("Cast", net.add("Pad", x, net.const(np.zeros(4, np.int64))), to=1)
    x = sliced(net, x, [0], [2**31 - 1], [-1], [1])
    net.output(net.add("Identity", net.add("Neg", x), out="y"))
    net.output(net.add("Identity", "x", out="copy"))
    model, count = changed(net, "remove_identities")
    assert count == 7 and ops(model) == ["Relu", "Neg", "Identity"]


def test_limits_that_are_never_reached_go():
    net = Net()
    zero, three, six = (net.const(float(k)) for k in (0, 3, 6))
    x = net.add("Clip", net.input("x", "N", 2, 4), zero, three, out="a")
    x = net.add("Pad", net.add("MaxPool", x, kernel_shape=[2]), net.const(np.eye(6, dtype=int)[0]))
    x = net.add("Clip", net.add("Relu", x), zero, six)
    below = net.add("Pad", x, net.const(np.eye(6, dtype=int)[0]), net.const(-1.0))
    net.output(net.add("Relu", below, out="below"), net.add("Clip", x, zero, zero, out="none"))
    crossed = net.add("Clip", "a", six, three)  # the upper limit wins: 3 everywhere
    net.output(net.add("Clip", crossed, six, six, out="sixes"))
    model, count = changed(net, "remove_identities")
    assert count == 2
    assert ops(model) == ["Clip", "MaxPool", "Pad", "Pad", "Relu", "Clip", "Clip", "Clip"]


def test_what_does_something_stays():
    net = Net()
    x = net.input("x", "N", 4)
    y, mask = net.add("Dropout", x, out="y mask"), "mask"
    net.output(y, net.add("Cast", net.add("Cast", x, to=7), to=1, out="rounded"))
    net.output(net.add("Cast", mask, to=1, out="m"))
    for number, ends in enumerate([(0, 3, 1), (1, 4, 1), (-1, -9, -1), (0, 4, 2)]):
        sliced(net, x, [ends[0]], [ends[1]], [1], [ends[2]], out=f"part{number}")
        net.output(f"part{number}")
    assert changed(net, "remove_identities")[1] == 0


def test_biases_are_split_and_tied_weights_are_not():
    model, count = changed(BUILDERS["tied"](), "split_shared_constants")
    weighted = [n for n in model.graph if n.op_type in ("Conv", "Gemm")]
    assert [n.inputs[1].name for n in weighted] == ["w", "w", "m", "m"]
    assert len({n.inputs[2].name for n in weighted}) == 4 and count == 3


def test_a_weight_read_along_two_axes_is_copied():
    net = Net()
    w, x = net.weight(4, 4, name="w"), net.input("x", "N", 4)
    x = net.add("Gemm", net.add("Gemm", x, w), w, transB=1)
    net.output(net.add("Add", net.add("MatMul", x, w), w, out="y"))
    feeds = {"x": np.ones((4, 4), np.float32)}
    model, count = changed(net, "split_shared_constants", feeds=feeds)
    assert count == 2
    assert [n.inputs[1].name for n in model.graph] == ["w", "w_copy", "w", "w_copy_1"]
