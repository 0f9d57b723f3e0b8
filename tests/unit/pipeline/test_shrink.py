"""Removing channels: what is left of a residual sum without its branch computes on integers."""

import numpy as np
from contexts import calibrated
from models import Net, cpu, option_a

from qtool.annotation.annotator import annotate
from qtool.pipeline.pruning.channels import removed_channels, shrink
from qtool.pruning.channels import channel_sets, removable_channels
from qtool.pruning.shrink import remove_channels
from qtool.quant.bit_widths import Bits
from qtool.recipe.model import Recipe
from qtool.rewrites.cleanup import remove_identities
from qtool.runtime.executor import Executor


def residual_of_nothing() -> Net:
    """A residual block whose branch adds nothing, so that it is the first to go."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 16))
    branch = net.add("Relu", net.conv(x, 16, 16))
    branch = net.add("Conv", branch, net.const(np.zeros((16, 16, 3, 3))), pads=[1, 1, 1, 1])
    x = net.add("Relu", net.add("Add", branch, x))
    return net.output(net.conv(x, 16, 4, name="last", out="y"))


def test_a_sum_without_its_branch_leaves_no_node_in_float():
    _, context = calibrated(residual_of_nothing(), rows=16)
    feeds = next(iter(context.feeds(context.fit)))[0]
    before = Executor(context.model)(feeds)["y"]
    recipe = Recipe(model="net.onnx", pruning={"channels": "30%"})
    shrink(recipe, context)
    counts = removed_channels(context.model)
    assert counts is not None and counts.removed == 16
    assert [node.op_type for node in context.model.graph] == ["Conv", "Relu", "Conv"]
    assert not annotate(context.model, cpu(), Bits()).float_nodes
    np.testing.assert_array_equal(Executor(context.model)(feeds)["y"], before)


def test_a_padded_shortcut_without_its_branch_leaves_no_node_in_float():
    _, context = calibrated(option_a(), rows=16)
    channels = removable_channels(context.model.graph)
    (branch,) = [each for each in channel_sets(channels) if each.is_branch]
    stays = np.ones(channels.count, bool)
    stays[branch.numbers] = False
    remove_channels(context.model, channels, stays)
    remove_identities(context.model, lambda node: True)
    assert "Add" not in [node.op_type for node in context.model.graph]
    assert not annotate(context.model, cpu(), Bits()).float_nodes
