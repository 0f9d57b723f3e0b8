"""Exchanged positions of nearly equal values are named, with what they cost."""

import numpy as np
import pytest
from models import Net, graph_context, make_grids, make_plan, rewritten

from qtool.calibration import MinMax
from qtool.data.spool import spool_batches
from qtool.diagnosis.positions import chosen_positions, position_finding


def unpooled():
    """A network that writes the largest values of windows back to their places."""
    net = Net(opset=21, ir_version=10, seed=3)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    x = net.add("Relu", net.conv(x, 8, 8))
    y = net.add("MaxPool", x, out="largest places", kernel_shape=[2, 2], strides=[2, 2])
    y = net.add("Relu", net.conv(y, 8, 8))
    y = net.add("MaxUnpool", y, "places", kernel_shape=[2, 2], strides=[2, 2])
    return net.output(net.conv(y, 8, 4, out="y"))


def best_boxes():
    """A detector that returns boxes in the order of their scores."""
    net = Net(opset=21, ir_version=10, seed=4)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 16, 16), 3, 8))
    scores = net.add("Reshape", net.conv(x, 8, 1), net.const(np.array([0, -1])))
    boxes = net.add("Reshape", net.conv(x, 8, 1), net.const(np.array([0, -1])))
    net.add("TopK", scores, net.const(np.array([16])), out="score order")
    return net.output(net.add("GatherElements", boxes, "order", axis=1, out="y"), "score")


def plain():
    net = Net(opset=21, ir_version=10)
    return net.output(net.conv(net.input("x", "N", 3, 16, 16), 3, 4, out="y"))


def finding_of(net, folder):
    model = net.model()
    rewritten(model)
    images = np.random.default_rng(0).normal(size=(32, 3, 16, 16)).astype(np.float32)
    batches = [{"x": images[k : k + 8]} for k in range(0, 32, 8)]
    context = graph_context(model, dataset=spool_batches(batches, folder))
    plan = make_grids(model, make_plan(model, context.target, context.bits), batches, MinMax())
    return position_finding(context, plan, context.calibration, ["y"])


@pytest.mark.parametrize(("build", "op"), [(unpooled, "MaxPool"), (best_boxes, "TopK")])
def test_the_finding_says_what_exchanged_positions_cost(build, op, tmp_path):
    finding = finding_of(build(), tmp_path)
    assert f"{op} " in finding.finding and "the output y follows them" in finding.finding
    share, own, fixed = (
        float(part.split()[-1])
        for part in (
            finding.evidence.split(" %")[0],
            finding.evidence.split(" dB")[0],
            finding.evidence.split(" dB with")[0],
        )
    )
    # With the positions of the float network the outputs are those of any 8-bit network.
    assert 0 < share < 60 and fixed > 30 > own


def test_without_positions_nothing_is_found(tmp_path):
    assert finding_of(plain(), tmp_path) is None
    assert chosen_positions(plain().model()) == []


def test_positions_that_nothing_reads_cost_nothing():
    net = Net()
    net.add("TopK", net.input("x", "N", 8), net.const(np.array([2])), out="y order")
    assert chosen_positions(net.output("y").model()) == []
