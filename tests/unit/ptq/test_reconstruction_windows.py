"""Windows of a block: the block computes on a part what it computes there on the whole."""

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS, Net

from qtool.graph.queries import by_name
from qtool.ptq import Brecq
from qtool.ptq.reconstruction.blocks import Block, find_regions
from qtool.ptq.reconstruction.samples import Batch
from qtool.ptq.reconstruction.windows import Span, Windows, receptive_field, window
from qtool.quant.bit_widths import Bits
from qtool.runtime.executor import Executor

RNG = np.random.default_rng(0)
FOUR = Bits(weights=4, activations=4)


def branches(size: int) -> Net:
    """Build a block of a convolution with a stride, a branch, a pool and a dilation."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, size, size), 3, 8))
    first = net.conv(x, 8, 8, strides=[2, 2])
    branch = net.add("Clip", net.conv(first, 8, 8, group=8), net.const(0.0), net.const(6.0))
    y = net.add("Add", net.conv(branch, 8, 8, 1), first)
    y = net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return net.output(net.conv(y, 8, 5, dilations=[2, 1], pads=[2, 1, 2, 1], out="y"))


def whole(context, block: Block, seed: int = 0) -> tuple[Executor, Batch]:
    """Return the float network and a batch of random values at the entry of a block."""
    network = Executor(context.model)
    feeds = next(context.feeds(context.fit, 4))[0]
    inputs = {name: torch.tensor(array) for name, array in feeds.items()}
    if block.entry is None:
        target = network(inputs, None, [block.exit])[block.exit]
        return network, Batch(block, inputs, None, None, target)
    names = [block.entry, block.exit]
    values = network(inputs, None, names)
    entry = torch.randn(values[block.entry].shape, generator=torch.Generator().manual_seed(seed))
    target = network({**inputs, block.entry: entry}, None, [block.exit])[block.exit]
    return network, Batch(block, inputs, entry, entry + 1, target)


def test_spans_compose():
    # Two 3 x 3 convolutions, the first with stride 2, read a window of 7 positions.
    span = Span().behind(3, 2, 1, 1).behind(3, 1, 1, 1)
    assert span == Span(2, 3, 3)
    assert span.joined(Span(2, 4, 0)) == Span(2, 4, 3) and span.joined(Span()) is None
    assert Span().behind(3, 1, 2, 0) == Span(1, 0, 4)


@pytest.mark.parametrize("size", [31, 40])
def test_a_window_of_the_entry_gives_the_window_of_the_output(size):
    _, context = calibrated(branches(size), FOUR)
    values = by_name(context.model.graph)
    entry = next(node.outputs[0].name for node in context.model.graph if node.op_type == "Relu")
    block = Block((), entry, "y")
    field = receptive_field(values, block)
    assert field.entry == entry and field.spans == (Span(4, 11, 13), Span(4, 7, 9))
    network, batch = whole(context, block)
    extent = batch.target.shape[2:]
    windows = Windows(field, 3, 0)
    parts = [windows(batch, None)[0] for _ in range(20)]
    parts.append(window(batch, field, (0, 0), extent))
    for part in parts:
        output = network(part.feeds(part.entry_float), None, ["y"])["y"][part.part]
        torch.testing.assert_close(output, part.target, rtol=1e-4, atol=1e-5)
        assert part.entry_quantized.shape == part.entry_float.shape
    assert all(part.target.shape[2:] == (3, 3) for part in parts[:-1])
    assert any(part.entry_float.numel() < batch.entry_float.numel() for part in parts)
    assert torch.equal(parts[-1].target, batch.target)


@pytest.mark.parametrize("name", BUILDERS)
def test_blocks_of_other_networks_have_windows_or_none(name):
    plan, context = calibrated(BUILDERS[name](), FOUR)
    values = by_name(context.model.graph)
    for region in find_regions(context.model.graph, plan):
        for block in region.blocks:
            field = receptive_field(values, block)
            if field is None:
                continue
            network, batch = whole(context, block)
            part, _ = Windows(field, 3, 1)(batch, None)
            output = network(part.feeds(part.entry_float), None, [block.exit])[block.exit]
            torch.testing.assert_close(output[part.part], part.target, rtol=1e-4, atol=1e-5)


def test_weights_of_elements_are_cut_with_their_elements():
    _, context = calibrated(branches(16), FOUR)
    entry = next(node.outputs[0].name for node in context.model.graph if node.op_type == "Relu")
    block = Block((), entry, "y")
    _, batch = whole(context, block)
    windows = Windows(receptive_field(by_name(context.model.graph), block), 2, 0)
    part, weight = windows(batch, batch.target)
    assert torch.equal(weight, part.target)
    by_channel = batch.target.mean((0, 2, 3), keepdim=True)
    assert windows(batch, by_channel)[1] is by_channel
    assert Windows(None, 2, 0)(batch, None) == (batch, None)
    assert (
        Windows(receptive_field(by_name(context.model.graph), block), 4, 0)(batch, None)[0] is batch
    )


def test_what_reads_all_positions_has_no_window():
    net = Net()
    x = net.conv(net.input("x", "N", 3, 12, 12), 3, 4)
    gate = net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", x), 4, 4, 1))
    net.output(net.conv(net.add("Mul", x, gate), 4, 4, out="y"))
    _, context = calibrated(net, FOUR)
    values = by_name(context.model.graph)
    assert receptive_field(values, Block((), x, "y")) is None
    assert receptive_field(values, Block((), None, "y")) is None
    whole_input = Block((), None, x)
    assert receptive_field(values, whole_input).entry == "x"
    network, batch = whole(context, whole_input)
    part, _ = Windows(receptive_field(values, whole_input), 3, 0)(batch, None)
    assert part.inputs["x"].numel() < batch.inputs["x"].numel()
    output = network(part.feeds(None), None, [x])[x][part.part]
    torch.testing.assert_close(output, part.target, rtol=1e-4, atol=1e-5)


def test_learning_on_windows_lowers_the_distance_of_the_network(tmp_path):
    plan, context = calibrated(branches(16), FOUR, rows=64, folder=tmp_path)
    step = Brecq(iterations=40, batch=16, window=2)
    result = step(plan, context)
    assert context.loss(result.plan) < 0.9 * context.loss(plan)
