"""What each placement leaves float before anything is measured."""

from dataclasses import replace

import pytest
from models import Net, cpu, squeeze_excite

from qtool.annotation.annotator import annotate
from qtool.annotation.placement import CONSERVATIVE, placement_reasons
from qtool.quant.bit_widths import Bits
from qtool.targets.loader import load_target


def pooled() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 4, name="first")
    x = net.add("Add", x, net.conv(x, 4, 4), name="sum")
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], name="moves")
    x = net.conv(x, 4, 4, name="middle")
    x = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], name="mean")
    return net.output(net.conv(x, 4, 4, name="last", out="y"))


def integer_nodes(net: Net, placement: str, target=None) -> set[str]:
    target, model = target or cpu(), net.model()
    reasons = placement_reasons(model.graph, target, placement)
    return set(annotate(model, target, Bits(), reasons).integer_nodes)


def test_all_is_everything_that_the_target_can():
    assert placement_reasons(pooled().model().graph, cpu(), "all") == {}
    assert {"first", "sum", "moves", "mean", "last"} <= integer_nodes(pooled(), "all")


def test_auto_leaves_kernels_that_gain_no_time():
    nodes = integer_nodes(pooled(), "auto")
    assert "mean" not in nodes and {"first", "sum", "moves", "last"} <= nodes


def test_conservative_is_layers_with_weights():
    model = squeeze_excite().model()
    reasons = placement_reasons(model.graph, cpu(), "conservative")
    plan = annotate(model, cpu(), Bits(), reasons)
    assert {site.op for site in plan.sites.values()} == {"Conv"}
    assert set(reasons.values()) == {CONSERVATIVE}


@pytest.mark.parametrize("name", ["integer-only", "npu-u8", "fpga"])
def test_targets_without_fast_floats_have_no_islands(name):
    target = load_target(name)
    assert target.no_gain == () and target.island_gain_db is None
    assert "mean" in integer_nodes(pooled(), "auto", target)


def test_an_op_without_a_rule_needs_no_reason():
    target = replace(cpu(), ops={"Conv": cpu().ops["Conv"]})
    assert placement_reasons(pooled().model().graph, target, "conservative") == {}
