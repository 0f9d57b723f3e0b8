"""Weight normalization keeps the float function; weights reach 1 where outputs can be scaled."""

import numpy as np
import pytest
from models import BUILDERS, Net, changed, cpu

from qtool.graph.queries import clip_limits, constant
from qtool.rewrites import rewrite_names


def test_known_answer():
    """W = 8, then Clip at 6, then W = 2: 1, Clip at 6 / 8, and 16 in the last layer."""
    net = Net()
    x = net.add("Conv", net.input("x", "N", 1, 2, 2), net.const([[[[8.0]]]]), net.const([1.0]))
    x = net.add("Clip", x, net.const(np.float32(0)), net.const(np.float32(6)))
    net.output(net.add("Conv", x, net.const([[[[2.0]]]]), net.const([1.0]), out="y"))
    model, count = changed(net, "normalize_weights")
    first, clip, last = list(model.graph)
    assert count == 2
    assert [constant(n.inputs[1]).item() for n in (first, last)] == [1.0, 16.0]
    assert [constant(n.inputs[2]).item() for n in (first, last)] == [0.125, 1.0]
    assert clip_limits(clip) == (0.0, 0.75)


def test_branches_share_the_larger_factor():
    net = Net()
    x = net.input("x", "N", 1, 2, 2)
    a = net.add("Conv", x, net.const([[[[4.0]]]]), net.const([1.0]))
    b = net.add("Conv", x, net.const([[[[0.5]]]]), net.const([1.0]))
    s = net.add("Relu", net.add("Add", a, b))
    net.output(net.add("Conv", s, net.const([[[[3.0]]]]), net.const([1.0]), out="y"))
    model, _ = changed(net, "normalize_weights")
    weights = [constant(n.inputs[1]).item() for n in model.graph if n.op_type == "Conv"]
    assert weights == [1.0, 0.125, 12.0]


def test_a_limit_that_others_read_stays():
    net = Net()
    x, low, high = net.input("x", "N", 3, 4, 4), net.const(np.float32(0)), net.const(np.float32(6))
    y = net.add("Clip", net.conv(x, 3, 4), low, high)
    z = net.add("Clip", x, low, high)
    net.output(net.add("Add", net.conv(y, 4, 4), net.conv(z, 3, 4), out="y"))
    model, _ = changed(net, "normalize_weights")
    limits = [clip_limits(n)[1] for n in model.graph if n.op_type == "Clip"]
    assert sorted(limit == 6 for limit in limits) == [False, True]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_function_stays(name):
    changed(BUILDERS[name](), *rewrite_names(["normalize_weights"], cpu().rewrites))
