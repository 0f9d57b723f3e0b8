"""Reshapes to a computed shape become constant, the same for every batch size."""

import numpy as np
from models import Net, changed, feeds_for, ops, rewritten, run

from qtool.graph.queries import constant


def flattened():
    """What exporters write for ``x.view(len(x), -1)`` between a Conv and a Gemm."""
    net = Net(opset=20, ir_version=10)
    x = net.input("x", "N", 3, 8, 8)
    y = net.add("Relu", net.add("Conv", x, net.weight(4, 3, 3, 3), name="conv"))
    rows = net.add("Slice", net.add("Shape", y), *(net.const(np.array([v])) for v in (0, 1)))
    shape = net.add("Concat", rows, net.const(np.array([144])), axis=0)
    flat = net.add("Reshape", y, shape, name="flat")
    return net.output(net.add("Gemm", flat, net.weight(144, 5)))


def test_a_shape_computed_from_the_batch_becomes_constant():
    model, count = changed(flattened(), "make_reshapes_static")
    assert count == 1
    assert set(ops(model)) == {"Conv", "Relu", "Reshape", "Gemm"}
    reshape = next(n for n in model.graph if n.op_type == "Reshape")
    assert constant(reshape.inputs[1]).tolist() == [-1, 144]
    assert reshape.name == "flat"


def test_every_batch_size_still_fits():
    net = flattened()
    model, want = net.model(), net.proto()
    rewritten(model, "make_reshapes_static")
    for rows in (1, 7):
        feeds = feeds_for(model, rows)
        for name, array in run(want, feeds).items():
            # The same sums in the same order.
            np.testing.assert_allclose(run(model, feeds)[name], array, atol=1e-6)


def test_a_size_follows_from_those_that_both_sides_do_not_share():
    net = Net(opset=20, ir_version=10)
    x = net.input("x", "N", 6, 8)
    batch = net.add("Shape", x, end=1)
    split = net.add("Concat", batch, net.const(np.array([6, 2, -1])), axis=0)
    heads = net.add("Reshape", x, split)
    joined = net.add("Concat", batch, net.const(np.array([-1])), axis=0)
    net.output(heads, net.add("Reshape", heads, joined))
    model, want = net.model(), net.proto()
    assert rewritten(model, "make_reshapes_static") == {"make_reshapes_static": 2}
    shapes = [constant(node.inputs[1]).tolist() for node in model.graph]
    assert shapes == [[-1, 6, 2, 4], [-1, 48]]
    for rows in (1, 3):
        feeds = feeds_for(model, rows)
        for name, array in run(want, feeds).items():
            np.testing.assert_array_equal(run(model, feeds)[name], array)


def test_two_unknown_sizes_are_left():
    net = Net(opset=20, ir_version=10)
    x = net.input("x", "N", "T", 8)
    shape = net.add("Concat", net.add("Shape", x, end=2), net.const(np.array([2, 4])), axis=0)
    net.output(net.add("Reshape", x, shape))
    model = net.model()
    assert rewritten(model, "make_reshapes_static") == {"make_reshapes_static": 0}
    assert "Shape" in ops(model)


def test_a_constant_shape_is_left():
    net = Net(opset=20, ir_version=10)
    x = net.input("x", "N", 4, 8)
    net.output(net.add("Reshape", x, net.const(np.array([0, 32]))))
    assert changed(net, "make_reshapes_static")[1] == 0
