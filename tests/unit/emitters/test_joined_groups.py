"""Groups of few channels are joined in the file: equal bits, fewer groups, the same bytes."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from models import Net, bind, cpu, feeds_for, make_grids, make_plan, optimized, run

from qtool.calibration import MinMax
from qtool.emitters import emit_model
from qtool.emitters.joined_groups import joined_notes
from qtool.graph.queries import attribute
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.targets.loader import load_target
from qtool.weights import SCHEMES


def grouped(groups: int, inputs: int, outputs: int, rank: int = 2, opset: int = 21) -> Net:
    """A grouped convolution between two others, strided."""
    net, (before, after) = Net(opset, 10), (groups * inputs, groups * outputs)
    x = net.input("x", "N", 4, *[6] * rank)
    ones = [1] * rank
    x = net.add("Relu", net.add("Conv", x, net.weight(before, 4, *ones), net.weight(before)))
    w, b = net.weight(after, inputs, *[3] * rank, name="w"), net.weight(after)
    x = net.add("Conv", x, w, b, name="g", group=groups, pads=[1, 2] * rank, strides=[2] * rank)
    return net.output(net.add("Conv", x, net.weight(3, after, *ones), out="y"))


def emitted(net: Net, bits: Bits, scheme: str = "uniform", form: str = "qdq"):
    """The file's model with joined groups, the one without, and inputs."""
    model = net.model()
    feeds = feeds_for(model, spatial=6)
    bind(model, feeds)
    plan = make_plan(model, cpu(), bits)
    plan = freeze(model, make_grids(model, plan, [feeds], MinMax(), SCHEMES[scheme]()))
    plain = replace(cpu(), group_channels=0)
    return *(emit_model(model, plan, target, form)[0] for target in (cpu(), plain)), feeds


def groups_of(graph: ir.Graph) -> int:
    """Groups of the second convolution that the runtime executes."""
    return int(attribute([n for n in graph if n.op_type == "QLinearConv"][1], "group", 1))


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "joined"),
    [
        (16, 4, 4, 2),  # to 32 channels
        (16, 1, 2, 1),  # 16 and 32 channels: 23 is as near to 32 as any
        (7, 3, 5, 1),  # 27, and nothing between 4 and that
        (12, 8, 2, 2),  # 48 and 12, or 24 and 6
        (2, 32, 32, 2),  # 32 already
        (8, 1, 1, 8),  # depthwise
    ],
)
def test_a_group_gets_about_32_channels_and_no_bit_changes(
    groups, inputs, outputs, joined, tmp_path
):
    ours, plain, feeds = emitted(grouped(groups, inputs, outputs), Bits(8, 8))
    graph = optimized(ours, tmp_path).graph
    assert groups_of(graph) == joined
    assert groups_of(optimized(plain, tmp_path).graph) == groups
    assert "Where" not in {node.op_type for node in graph}
    np.testing.assert_array_equal(run(ours, feeds)["y"], run(plain, feeds)["y"])


@pytest.mark.parametrize(
    ("bits", "scheme", "form", "rank"),
    [
        (4, "uniform", "qdq", 2),
        (2, "kmeans", "qdq", 2),
        (1, "binary", "qoperator", 2),
        (8, "uniform", "qoperator", 1),
        (8, "uniform", "qdq", 3),
    ],
)
def test_codes_stay_packed_in_every_form(bits, scheme, form, rank):
    ours, plain, feeds = emitted(grouped(16, 4, 4, rank), Bits(bits, 8), scheme, form)
    np.testing.assert_array_equal(run(ours, feeds)["y"], run(plain, feeds)["y"])
    sizes = [
        sum(v.const_value.nbytes for v in m.graph.initializers.values()) for m in (ours, plain)
    ]
    assert sizes[0] < sizes[1] + 200


def test_what_is_left_as_it_is():
    shared = grouped(16, 4, 4)
    shared.add("Conv", "x", "w", out="z", group=1, name="h")
    wide, narrow = (emitted(grouped(16, 4, 4), Bits(8, bits))[0] for bits in (16, 8))
    assert wide.graph.node("g").attributes["group"].value == 16
    assert narrow.graph.node("g").attributes["group"].value == 2
    assert joined_notes(wide, wide) == []
    assert joined_notes(wide, narrow) == [
        "convolutions whose groups are joined by zero weights: 1 (g 16 -> 2)"
    ]
    assert emitted(shared, Bits(8, 8))[0].graph.node("g").attributes["group"].value == 16
    others = ("onnxruntime-cpu-no-vnni", "integer-only", "openvino", "npu-u8")
    assert {load_target(name).group_channels for name in others} == {0}
