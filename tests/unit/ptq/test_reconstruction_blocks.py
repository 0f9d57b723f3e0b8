"""Blocks: single entry, single exit, every layer in one of them."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS, Net, auxiliary_output

from qtool.graph.queries import by_name
from qtool.ptq.reconstruction.blocks import MAX_LAYERS, find_regions, values_between
from qtool.quant.bit_widths import Bits
from qtool.runtime.executor import Executor

FOUR = Bits(weights=4, activations=4)


def layers(regions):
    return [[len(block.sites) for block in region.blocks] for region in regions]


def test_residual_blocks_are_blocks():
    plan, context = calibrated(BUILDERS["residual"](), FOUR)
    regions = find_regions(context.model.graph, plan)
    assert layers(regions) == [[1], [2], [1]]
    # The block ends behind the Relu of the sum.
    producer = by_name(context.model.graph)[regions[1].exit].producer()
    assert producer.op_type in ("Relu", "Add")
    assert [region.entry for region in regions] == [None, *(r.exit for r in regions[:-1])]


def test_an_inverted_bottleneck_is_one_block():
    plan, context = calibrated(BUILDERS["inverted_bottleneck"](), FOUR)
    assert layers(find_regions(context.model.graph, plan)) == [[1], [3], [1]]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("whole", [True, False])
def test_every_layer_is_in_one_block_which_its_entry_alone_determines(name, whole):
    plan, context = calibrated(BUILDERS[name](), FOUR)
    regions = find_regions(context.model.graph, plan, whole)
    sites = [s.name for region in regions for block in region.blocks for s in block.sites]
    assert sites == [s.name for s in plan.sites.values() if s.weight is not None]
    if not whole:
        assert all(len(b.sites) == 1 for region in regions for b in region.blocks)
    feeds = next(context.feeds(context.fit, 8))[0]
    run = Executor(context.model)
    for region in regions:
        if region.entry is None:
            continue
        entry = run(feeds, None, [region.entry])[region.entry]
        exit_value = run({**feeds, region.entry: entry + 1}, None, [region.exit])
        assert not np.allclose(
            exit_value[region.exit], run(feeds, None, [region.exit])[region.exit]
        )
        between = values_between(by_name(context.model.graph), region.blocks[0])
        assert region.exit not in between


def chain(widths, pooled=()):
    net = Net()
    x, before = net.input("x", "N", widths[0], 8, 8), widths[0]
    for k, width in enumerate(widths[1:]):
        last = k == len(widths) - 2
        x = net.conv(x, before, width, **({"out": "y"} if last else {}))
        x, before = (x if last else net.add("Relu", x)), width
    return net.output(x)


def test_a_chain_is_cut_into_pairs_and_where_values_are_small():
    plan, context = calibrated(chain([4, 8, 8, 8, 8]), FOUR)
    assert layers(find_regions(context.model.graph, plan)) == [[2], [2]]
    plan, context = calibrated(chain([4, 16, 16, 4, 16, 16]), FOUR)
    assert layers(find_regions(context.model.graph, plan)) == [[3], [2]]


def test_wide_parts_are_reconstructed_layer_by_layer():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    branches = [net.add("Relu", net.conv(x, 8, 4)) for _ in range(MAX_LAYERS + 1)]
    total = branches[0]
    for branch in branches[1:]:
        total = net.add("Add", total, branch)
    plan, context = calibrated(net.output(net.conv(total, 4, 4, out="y")), FOUR)
    regions = find_regions(context.model.graph, plan)
    assert layers(regions) == [[1], [1] * (MAX_LAYERS + 1), [1]]
    assert {block.entry for block in regions[1].blocks} == {x}


def test_layers_in_front_of_several_outputs_are_single():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    first, second = net.conv(x, 8, 4, out="y"), net.conv(x, 8, 2, out="z")
    net.output(first)
    plan, context = calibrated(net.output(second), FOUR)
    assert layers(find_regions(context.model.graph, plan))[-1] == [1, 1, 1]


def test_a_layer_in_front_of_an_early_output_is_a_block_of_its_own():
    plan, context = calibrated(auxiliary_output(), FOUR)
    for whole in (True, False):
        blocks = [b for r in find_regions(context.model.graph, plan, whole) for b in r.blocks]
        values = by_name(context.model.graph)
        for block in blocks:
            inside = {block.exit, *values_between(values, block)}
            assert all(site.output in inside for site in block.sites)


def test_names_and_unknown_sizes():
    plan, context = calibrated(BUILDERS["residual"](), FOUR)
    block = find_regions(context.model.graph, plan)[1].blocks[0]
    assert block.name == f"{block.sites[0].name} .. {block.sites[1].name}"
    assert replace(block, sites=block.sites[:1]).name == block.sites[0].name
