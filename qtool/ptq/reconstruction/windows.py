"""Windows of feature maps: an iteration of learning reads one part of the positions of a block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import attribute, constant, dims, is_constant, rank
from qtool.ptq.reconstruction.blocks import Block, values_between
from qtool.ptq.reconstruction.samples import Batch
from qtool.runtime.ops import activation
from qtool.runtime.ops.table import ELEMENTWISE

T = torch.Tensor

# Output positions depend on the same positions of the operands.
POINTWISE = ELEMENTWISE | activation.TABLE.keys() | {"Identity", "BatchNormalization"}
POOLS = frozenset({"MaxPool", "AveragePool"})
# Other values of auto_pad pad by the size of the input.
FIXED_PADS = ("NOTSET", "", "VALID")


@dataclass(frozen=True)
class Span:
    """The positions of a block's entry that one position of a value behind it is computed from.

    Along one spatial axis, position p reads ``stride * p - before`` to ``stride * p + after``.
    """

    stride: int = 1
    before: int = 0
    after: int = 0

    def behind(self, kernel: int, stride: int, dilation: int, pad: int) -> "Span":
        """Return the span of the output of a convolution or a pool over this value.

        Args:
            kernel: positions, of the node along the axis.
            stride: of the node.
            dilation: of the node.
            pad: positions added in front.
        """
        last = dilation * (kernel - 1) - pad
        before, after = self.before + self.stride * pad, self.after + self.stride * last
        return Span(self.stride * stride, before, after)

    def joined(self, other: "Span") -> "Span | None":
        """Return the span of a sum of two values, None where their strides differ."""
        if self.stride != other.stride:
            return None
        return Span(self.stride, max(self.before, other.before), max(self.after, other.after))


Spans = tuple[Span, ...]
"""One for each spatial axis."""


@dataclass(frozen=True)
class ReceptiveField:
    """The positions that one position of a block's output is computed from.

    Attributes:
        entry: value that they belong to: the block's entry, or the only input it is computed from.
        spans: along each spatial axis.
    """

    entry: str
    spans: Spans


def receptive_field(values: Mapping[str, ir.Value], block: Block) -> ReceptiveField | None:
    """Return what a position of a block's output is computed from, None where that is no window.

    Convolutions, pools and what is computed position by position read a window; a mean over all
    positions, a matrix product and a change of the shape do not.

    Args:
        values: of the graph by name.
        block: of the graph.
    """
    entries = [block.entry] if block.entry else _inputs(values, block)
    axes = (rank(values[entries[0]]) or 2) - 2 if len(entries) == 1 else 0
    if axes < 1:
        return None
    made: dict[ir.Value, Spans | None] = {values[entries[0]]: (Span(),) * axes}

    def spans(value: ir.Value) -> Spans | None:
        if value not in made:
            made[value] = _behind(value.producer(), axes, spans)
        return made[value]

    behind = spans(values[block.exit])
    return None if behind is None else ReceptiveField(entries[0], behind)


def _inputs(values: Mapping[str, ir.Value], block: Block) -> list[str]:
    """Return the inputs of the graph that a block is computed from."""
    return [name for name in values_between(values, block) if values[name].is_graph_input()]


def _behind(
    node: ir.Node | None, axes: int, spans: Callable[[ir.Value], Spans | None]
) -> Spans | None:
    """Return the spans of a node's output from those of its inputs."""
    if node is None or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
        return None
    if node.op_type == "Conv" or node.op_type in POOLS:
        return _behind_window(node, spans(node.inputs[0]))
    if node.op_type not in POINTWISE and not _adds_channels(node):
        return None
    joined: Spans | None = None
    for value in node.inputs[: 1 if node.op_type == "Pad" else None]:
        if value is None or (is_constant(value) and _has_one_position(value, axes)):
            continue
        own = None if is_constant(value) else spans(value)
        joined = own if joined is None else _joined(joined, own)
        if joined is None:
            return None
    return joined


def _behind_window(node: ir.Node, spans: Spans | None) -> Spans | None:
    """Return the spans of the output of a convolution or a pool."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = attribute(node, "kernel_shape") if weight is None else weight.shape[2:]
    rule = attribute(node, "auto_pad", "NOTSET")
    if spans is None or kernel is None or rule not in FIXED_PADS:
        return None
    ones = (1,) * len(kernel)
    strides = attribute(node, "strides", ones)
    dilations = attribute(node, "dilations", ones)
    pads = attribute(node, "pads", (0,) * 2 * len(kernel))[: len(kernel)]
    pads = (0,) * len(kernel) if rule == "VALID" else pads
    parts = zip(spans, kernel, strides, dilations, pads, strict=True)
    behind = tuple(span.behind(*part) for span, *part in parts)
    return behind if all(min(span.before, span.after) >= 0 for span in behind) else None


def _adds_channels(node: ir.Node) -> bool:
    """Return whether a Concat or a Pad of zeros only adds channels."""
    if node.op_type == "Concat":
        return attribute(node, "axis") == 1
    pads = constant(node.inputs[1]) if node.op_type == "Pad" else None
    if pads is None or len(node.inputs) > 3 or attribute(node, "mode", "constant") != "constant":
        return False
    return not np.delete(pads.reshape(2, -1), 1, axis=1).any()


def _has_one_position(value: ir.Value, axes: int) -> bool:
    """Return whether a constant is the same at all positions."""
    shape = dims(value)
    return shape is not None and all(size == 1 for size in shape[-axes:])


def _joined(a: Spans, b: Spans | None) -> Spans | None:
    pairs = [x.joined(y) for x, y in zip(a, b, strict=True)] if b is not None else [None]
    return tuple(pair for pair in pairs if pair is not None) if all(pairs) else None


class Windows:
    """Random windows of a block's output, and the parts of its entry that they are computed from.

    A window is equally often at each position of its center, and pushed inside at the edges.
    Inside the map the entry's part has a margin, whose outputs are cut off: what the block pads
    there is not what lies there.
    """

    def __init__(self, field: ReceptiveField | None, size: int | None, seed: int) -> None:
        """Make the choice of windows.

        Args:
            field: of the block; None: batches stay whole.
            size: positions of the output along each axis, at most; None: batches stay whole.
            seed: of the choice.
        """
        self._field, self._size = field, size
        self._rng = np.random.default_rng(seed)

    def __call__(self, batch: Batch, weight: T | None) -> tuple[Batch, T | None]:
        """Return a window of a batch and of the weights of its output elements.

        Args:
            batch: of whole maps.
            weight: broadcasts against the output; None: all are 1.
        """
        if self._field is None or self._size is None:
            return batch, weight
        whole = batch.target.shape[2:]
        if all(extent <= self._size for extent in whole):
            return batch, weight
        starts = [self._start(extent) for extent in whole]
        stops = [min(a + self._size, n) for a, n in zip(starts, whole, strict=True)]
        if weight is not None and weight.shape[2:] == whole:
            weight = weight[_cut(starts, stops)]
        return window(batch, self._field, starts, stops), weight

    def _start(self, extent: int) -> int:
        assert self._size is not None
        center = int(self._rng.integers(extent)) - self._size // 2
        return max(0, min(center, extent - self._size))


def window(
    batch: Batch, field: ReceptiveField, starts: Sequence[int], stops: Sequence[int]
) -> Batch:
    """Return the part of a batch that an output window is computed from.

    Args:
        batch: of whole maps.
        field: of the block.
        starts: of the window along each spatial axis of the output.
        stops: behind its last position.
    """
    margins = [
        min(a, -(-reach.before // reach.stride))
        for reach, a in zip(field.spans, starts, strict=True)
    ]
    first = [r.stride * (a - m) for r, a, m in zip(field.spans, starts, margins, strict=True)]
    last = [r.stride * (b - 1) + r.after + 1 for r, b in zip(field.spans, stops, strict=True)]
    part = _cut(first, last)
    cut: dict[str, Any] = {
        name: value[part]
        for name in ("entry_float", "entry_quantized")
        if (value := getattr(batch, name)) is not None
    }
    if field.entry in batch.inputs:
        cut["inputs"] = {**batch.inputs, field.entry: batch.inputs[field.entry][part]}
    stops_inside = [m + b - a for m, a, b in zip(margins, starts, stops, strict=True)]
    target = batch.target[_cut(starts, stops)]
    return replace(batch, **cut, target=target, part=_cut(margins, stops_inside))


def _cut(starts: Sequence[int], stops: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of an array [N, C, spatial axes]."""
    spatial = [slice(a, b) for a, b in zip(starts, stops, strict=True)]
    return slice(None), slice(None), *spatial
