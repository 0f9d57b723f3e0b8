"""The quantities that an output carries, from the Concats near the end of the graph."""

import numpy as np
import pytest
from models import Net

from qtool.graph.output_groups import MAX_GROUPS, channel_groups


def ints(net: Net, *values: int) -> str:
    return net.const(np.array(values))


def slices(net: Net) -> list[tuple[str, int, int, int, str]]:
    groups = channel_groups(net.model())
    return [(g.output, g.axis, g.start, g.stop, g.source) for g in groups]


def boxes_and_scores(net: Net) -> str:
    x = net.input("x", "N", 3, 8, 8)
    boxes, scores = net.conv(x, 3, 4, out="boxes"), net.conv(x, 3, 6, out="scores")
    return net.add("Concat", boxes, net.add("Sigmoid", scores, out="probabilities"), axis=1)


def test_a_concat_of_channels_gives_a_group_for_each_operand():
    net = Net()
    net.output(net.add("Identity", boxes_and_scores(net), out="y"))
    assert slices(net) == [("y", 1, 0, 4, "boxes"), ("y", 1, 4, 10, "probabilities")]


def test_axes_are_those_of_the_output_behind_reshapes_and_transposes():
    net = Net()
    cells = net.add("Reshape", boxes_and_scores(net), ints(net, 0, 10, 64))
    net.output(net.add("Transpose", cells, perm=[0, 2, 1], out="y"))
    assert slices(net) == [("y", 2, 0, 4, "boxes"), ("y", 2, 4, 10, "probabilities")]


def test_levels_of_boxes_and_scores_are_sliced_on_both_axes():
    net = Net()
    cells = net.add("Reshape", boxes_and_scores(net), ints(net, 0, 10, 64), out="fine")
    pooled = net.add("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])
    coarse = net.add("Reshape", net.conv(pooled, 3, 10), ints(net, 0, 10, 16), out="coarse")
    net.output(net.add("Concat", cells, coarse, axis=2, out="y"))
    assert slices(net) == [
        ("y", 2, 0, 64, "fine"),
        ("y", 2, 64, 80, "coarse"),
        ("y", 1, 0, 4, "boxes"),
        ("y", 1, 4, 10, "probabilities"),
    ]


@pytest.mark.parametrize("operands", [1, MAX_GROUPS + 1])
def test_one_operand_or_a_stack_of_many_is_no_list_of_quantities(operands):
    net = Net()
    x = net.input("x", "N", 2, 4, 4)
    net.output(net.add("Concat", *[x] * operands, axis=1, out="y"))
    assert slices(net) == []


def test_an_output_without_a_concat_has_no_groups():
    net = Net()
    assert slices(net.output(net.conv(net.input("x", "N", 2, 4, 4), 2, 4, out="y"))) == []
