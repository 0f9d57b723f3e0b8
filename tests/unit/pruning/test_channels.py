"""Channels: removed, the network is the one whose layers do not read them; the choice; errors."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from contexts import calibrated
from models import (
    Net,
    bind,
    cpu,
    depthwise,
    feeds_for,
    inverted_bottleneck,
    option_a,
    residual,
    rewritten,
    squeeze_excite,
)

from qtool.errors import RecipeError, UnsupportedError
from qtool.graph.channels import FIXED
from qtool.graph.queries import nodes_by_name
from qtool.loading import infer_shapes
from qtool.pruning.channel_choice import choose_channels, masked_weights
from qtool.pruning.channels import channel_sets, removable_channels
from qtool.pruning.shrink import remove_channels
from qtool.rewrites import LATER
from qtool.runtime.executor import Executor
from qtool.verification.layers.table import total_macs

RNG = np.random.default_rng(0)


def concatenated() -> Net:
    """A Concat whose readers see both operands, a Flatten, a PRelu, and a Reshape."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 6, 6), 4, 8))
    a, b = net.add("Relu", net.conv(x, 8, 8)), net.add("Sigmoid", net.conv(x, 8, 6, k=1))
    x = net.add("PRelu", net.add("Concat", a, b, axis=1), net.const(0.2))
    x = net.add("Reshape", x, net.const(np.array([0, 14 * 36])))
    return net.output(net.add("Gemm", x, net.weight(5, 14 * 36), net.weight(5), transB=1, out="y"))


def gated_branch() -> Net:
    """A residual branch with x sigmoid(x): two paths lead from one layer to the next."""
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8)
    z = net.conv(x, 8, 16, k=1)
    z = net.conv(net.add("Mul", z, net.add("Sigmoid", z)), 16, 8, k=1)
    return net.output(net.conv(net.add("Add", x, z), 8, 4, k=1, out="y"))


def scaled_by_numbers() -> Net:
    """A sum, product and difference with one number each, as learnable affine blocks have them."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    x = net.add("Mul", net.add("Add", x, net.const(0.5)), net.const([[[2.0]]]))
    x = net.add("Sub", net.const(np.ones((1, 1, 1, 1))), x)
    return net.output(net.conv(x, 8, 4, k=1, out="y"))


def folded(net: Net):
    model = net.model()
    feeds = feeds_for(model)
    bind(model, feeds)
    rewritten(model, *[name for name in cpu().rewrites if name not in LATER])
    return model, feeds


def outputs(model, feeds, arrays=None):
    tensors = {name: torch.from_numpy(np.asarray(a)) for name, a in (arrays or {}).items()}
    with torch.inference_mode():
        got = Executor(model)(feeds, lambda value, tensor: tensors.get(value.name, tensor))
    return next(iter(got.values())).numpy()


NETS = [
    residual,
    option_a,
    depthwise,
    inverted_bottleneck,
    squeeze_excite,
    concatenated,
    gated_branch,
    scaled_by_numbers,
]


@pytest.mark.parametrize("build", NETS)
@pytest.mark.parametrize("empty", [False, True])
def test_the_smaller_network_is_the_one_with_zeroed_channels(build, empty):
    model, feeds = folded(build())
    channels = removable_channels(model.graph)
    sets = channel_sets(channels)
    assert sets
    stays = np.ones(channels.count, bool)
    for each in sets:
        gone = len(each.numbers) if empty and each.is_branch else len(each.numbers) // 2
        stays[RNG.permutation(each.numbers)[:gone]] = False
    expected = outputs(model, feeds, masked_weights(channels.layers, stays))
    before, size = (
        total_macs(model),
        sum(v.const_value.size for v in model.graph.initializers.values()),
    )
    remove_channels(model, channels, stays)
    got = outputs(model, feeds)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert total_macs(model) < before
    read = {v.name for node in model.graph for v in node.inputs if v is not None}
    left = sum(v.const_value.size for n, v in model.graph.initializers.items() if n in read)
    assert left < size
    shapes = {v.name: v.shape for node in model.graph for v in node.outputs if v.shape is not None}
    infer_shapes(model)  # what is stated agrees with what follows from the operators
    for node in model.graph:
        for value in node.outputs:
            assert value.name not in shapes or list(value.shape) == list(shapes[value.name])


def test_channels_that_go_together_are_one_set():
    model, _ = folded(residual())
    sets = channel_sets(removable_channels(model.graph))
    assert sorted(len(each.numbers) for each in sets) == [8, 8]  # the sum's, and the branch's
    assert [each.is_branch for each in sets] == [False, True]
    model, _ = folded(depthwise())
    assert len(channel_sets(removable_channels(model.graph))) == 1
    # The shortcut's padded channels stand beside those that come from the layer before.
    model, _ = folded(option_a())
    assert sorted(len(s.numbers) for s in channel_sets(removable_channels(model.graph))) == [
        4,
        4,
        8,
    ]


def test_a_branch_without_channels_disappears():
    model, feeds = folded(residual())
    channels = removable_channels(model.graph)
    (branch,) = [each for each in channel_sets(channels) if each.is_branch]
    stays = np.ones(channels.count, bool)
    stays[branch.numbers] = False
    remove_channels(model, channels, stays)
    assert [node.op_type for node in model.graph].count("Conv") == 2
    assert "Add" not in [node.op_type for node in model.graph]
    assert outputs(model, feeds).shape == (4, 4, 8, 8)


def wide(channels=64):
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, channels, name="first"))
    x = net.add("Relu", net.conv(x, channels, channels, name="second"))
    return net.output(net.conv(x, channels, 4, name="last", out="y"))


def test_the_choice_saves_the_requested_share_in_multiples_that_kernels_compute():
    _, context = calibrated(wide(), rows=16)
    channels = removable_channels(context.model.graph)
    choice = choose_channels(context, channels, 0.5)
    assert choice.counts.macs <= 0.5 * choice.counts.float_macs
    assert choice.counts.float_macs == total_macs(context.model)
    remove_channels(context.model, channels, choice.stays)
    assert total_macs(context.model) == choice.counts.macs
    nodes = nodes_by_name(context.model.graph)
    assert all(nodes[name].outputs[0].shape[1] % 16 == 0 for name in ("first", "second"))


def test_channels_that_carry_nothing_go_first():
    _, context = calibrated(wide(), rows=16)
    values = {v.name: v for v in context.model.graph.initializers.values()}
    last = nodes_by_name(context.model.graph)["last"].inputs[1]
    array = last.const_value.numpy().copy()
    array[:, 10:42] = 0  # of these channels of "second" nothing is read
    values[last.name].const_value = ir.tensor(array)
    channels = removable_channels(context.model.graph, {"first"})
    choice = choose_channels(context, channels, 0.4)
    second = next(x for x in channels.layers if x.node.name == "second").outputs[0]
    gone = np.flatnonzero(~choice.stays[second])
    assert len(gone) == 32 and set(gone) == set(range(10, 42))
    first = next(x for x in channels.layers if x.node.name == "first").outputs[0]
    assert (first == FIXED).all()


def test_what_cannot_be_removed_is_said():
    _, context = calibrated(wide(), rows=16)
    with pytest.raises(RecipeError, match="99%, expected at most 9"):
        choose_channels(context, removable_channels(context.model.graph), 0.99)
    names = {"first", "second", "last"}
    with pytest.raises(UnsupportedError, match="no channel of the network can be removed"):
        choose_channels(context, removable_channels(context.model.graph, names), 0.5)
