"""Follow channels through a graph: which layers write a channel, and which layers read it.

Two channels are one where ops in between only pass them on (Relu, pooling, Reshape, Add of two
branches ...): whoever scales the one by a positive factor scales the other. Where an op does
something else with a channel, the channel is fixed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.layers import is_layer, layer_weight, oriented
from qtool.graph.queries import attribute, captured, clip_limits, constant, dims, is_constant, rank

FIXED = 0
"""The number of all channels that must not be scaled."""
MERGING = ("Add", "Sub", "Sum", "Concat")
"""Ops whose operands have their channels in common, or behind one another."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with constant weights.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        outputs: numbers of the channels it writes, [groups, outputs of a group].
        inputs: numbers of the channels it reads, [groups, inputs of a group].
    """

    node: ir.Node
    outputs: np.ndarray
    inputs: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are scaled together, and all layers that read one of them.

    Attributes:
        numbers: of the channels, ascending.
        readers: in graph order; not empty.
    """

    numbers: np.ndarray
    readers: tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class _Followed:
    """The channels of one value: their numbers, and the axis that they lie along."""

    numbers: np.ndarray
    axis: int


class Channels:
    """The channels of a graph, numbered; equal numbers are scaled together.

    Attributes:
        layers: with weights that may be changed, in graph order.
        norms: LayerNormalizations with constant factors, and the channels that they write.
        clips: Clips with the lower limit 0, which pass a channel on only where the upper limit
            is never reached, and their channels.
    """

    def __init__(self, graph: ir.Graph, norms: bool = False, elementwise: bool = False) -> None:
        """Follow all channels of the main graph.

        Args:
            graph: read only.
            norms: follow the channels that a LayerNormalization writes, too.
            elementwise: follow channels through every op that treats each of them alone: to remove
                channels, not to scale them.
        """
        self._with_norms, self._elementwise = norms, elementwise
        self._merging = MERGING + (("Mul", "Div") if elementwise else ())
        self._rules = {**_FOLLOW, **(_UNARY if elementwise else {})}
        self._norms: list[tuple[ir.Node, np.ndarray]] = []
        self._parents = [FIXED]
        self._followed: dict[ir.Value, _Followed] = {}
        self._layers: list[Layer] = []
        self.clips: list[tuple[ir.Node, np.ndarray]] = []
        for node in graph:
            self._visit(node)
        for value in graph.outputs:
            self._fix_value(value)

    @property
    def layers(self) -> list[Layer]:
        """The layers, their channels numbered as they are now."""
        return [Layer(x.node, self.number(x.outputs), self.number(x.inputs)) for x in self._layers]

    @property
    def norms(self) -> list[tuple[ir.Node, np.ndarray]]:
        """The LayerNormalizations and the channels that they write."""
        return [(node, self.number(numbers)) for node, numbers in self._norms]

    def groups(self) -> Iterator[Group]:
        """Yield the channels that each norm, then each layer, is the first to write."""
        layers, seen = self.layers, {FIXED}
        for written in (*(numbers for _, numbers in self.norms), *(x.outputs for x in layers)):
            numbers = np.array(sorted(set(written.reshape(-1).tolist()) - seen), np.int64)
            seen.update(numbers.tolist())
            readers = tuple(x for x in layers if np.isin(x.inputs, numbers).any())
            if readers:
                yield Group(numbers, readers)

    @property
    def count(self) -> int:
        """All numbers are below."""
        return len(self._parents)

    def of(self, value: ir.Value | None) -> tuple[np.ndarray, int] | None:
        """Return the numbers of a value's channels and the axis they lie along, if followed."""
        followed = None if value is None else self._followed.get(value)
        return None if followed is None else (self.number(followed.numbers), followed.axis)

    def fix(self, numbers: np.ndarray) -> None:
        """Exclude channels from scaling."""
        self._join(numbers, np.full(numbers.shape, FIXED))

    def join(self, numbers: np.ndarray) -> None:
        """Scale channels alike: by one factor, or by none where one of them is fixed."""
        first = numbers.reshape(-1)[:1]
        self._join(numbers, np.broadcast_to(first, numbers.shape))

    def number(self, numbers: np.ndarray) -> np.ndarray:
        """Return the numbers that channels have now that some of them were found to be one."""
        return np.array([self._root(k) for k in numbers.flat], np.int64).reshape(numbers.shape)

    def _root(self, k: int) -> int:
        while self._parents[k] != k:
            self._parents[k] = self._parents[self._parents[k]]
            k = self._parents[k]
        return k

    def _join(self, a: np.ndarray, b: np.ndarray) -> None:
        for left, right in zip(a.flat, b.flat, strict=True):
            low, high = sorted((self._root(int(left)), self._root(int(right))))
            self._parents[high] = low  # FIXED is the lowest and stays a root

    def _new(self, count: int) -> np.ndarray:
        start = len(self._parents)
        self._parents += range(start, start + count)
        return np.arange(start, start + count)

    def _fix_value(self, value: ir.Value | None) -> None:
        followed = self._followed.get(value) if value is not None else None
        if followed is not None:
            self.fix(followed.numbers)

    def _visit(self, node: ir.Node) -> None:
        for outer in captured(node):
            self._fix_value(outer)
        if is_layer(node):
            self._visit_layer(node)
            return
        if node.op_type == "Shape":
            return  # it reads no number
        if self._with_norms and _is_norm(node):
            self._visit_norm(node)
            return
        inputs = [self._followed.get(v) for v in node.inputs if v is not None]
        if node.op_type in self._merging:
            followed = self._merged(node, inputs)
        elif node.op_type == "Clip" and inputs[0] and clip_limits(node)[0] == 0:
            followed = inputs[0]
            self.clips.append((node, followed.numbers))
        elif inputs and inputs[0] and node.op_type in self._rules:
            followed = self._rules[node.op_type](node, inputs[0], self._new)
        else:
            followed = None
        if followed is None:
            for value in node.inputs:
                self._fix_value(value)
        else:
            self._followed[node.outputs[0]] = followed

    def _visit_layer(self, node: ir.Node) -> None:
        groups, outputs, inputs, _ = oriented(node, layer_weight(node)).shape
        # Convolutions and Gemm have channels along axis 1, a MatMul along the last.
        last = rank(node.outputs[0])
        axis = 1 if node.op_type != "MatMul" else (last or 0) - 1
        read = self._followed.get(node.inputs[0]) if node.inputs[0] is not None else None
        if read is None or read.axis != axis or read.numbers.size != groups * inputs:
            self._fix_value(node.inputs[0])
            numbers = np.full((groups, inputs), FIXED)
        else:
            numbers = read.numbers.reshape(groups, inputs)
        written = self._new(groups * outputs)
        self._layers.append(Layer(node, written.reshape(groups, outputs), numbers))
        self._followed[node.outputs[0]] = _Followed(written, axis)
        if any(len(v.uses()) > 1 for v in node.inputs[1:] if v is not None):
            self.fix(written)  # tied weights belong to several layers
            self.fix(numbers)

    def _visit_norm(self, node: ir.Node) -> None:
        self._fix_value(node.inputs[0])
        written = self._new(int(np.prod(dims(node.inputs[1]) or (0,))))  # type: ignore[arg-type]
        self._norms.append((node, written))
        self._followed[node.outputs[0]] = _Followed(written, (rank(node.outputs[0]) or 0) - 1)
        if any(len(v.uses()) > 1 for v in node.inputs[1:] if v is not None):
            self.fix(written)

    def _merged(self, node: ir.Node, inputs: Sequence[_Followed | None]) -> _Followed | None:
        values = list(node.inputs)
        if self._elementwise and node.op_type != "Concat":
            values = [v for v in values if not _is_scalar(v, rank(node.outputs[0]))]
        parts = [f for f in inputs if f is not None]
        if len(parts) < len(values) or not parts or len({f.axis for f in parts}) > 1:
            return None
        ranks = {rank(v) for v in values}
        if None in ranks or len(ranks) > 1:
            return None
        first = parts[0]
        along = attribute(node, "axis") if node.op_type == "Concat" else None
        if along is not None and along % (rank(node.inputs[0]) or 1) == first.axis:
            return _Followed(np.concatenate([f.numbers for f in parts]), first.axis)
        if any(f.numbers.size != first.numbers.size for f in parts):
            return None
        for other in parts[1:]:
            self._join(first.numbers, other.numbers)
        return first


def _is_scalar(value: ir.Value | None, most: int | None) -> bool:
    """Return whether a constant of at most so many axes has one number."""
    shape = dims(value) if is_constant(value) else None
    return shape is not None and set(shape) <= {1} and len(shape) <= (most or 0)


def _is_norm(node: ir.Node) -> bool:
    """Return whether a node normalizes the last axis with constant factors of one dimension."""
    if node.op_type != "LayerNormalization" or len(node.inputs) < 2:
        return False
    constants = all(is_constant(v) for v in node.inputs[1:] if v is not None)
    size, axis = rank(node.outputs[0]) or 0, int(attribute(node, "axis", -1))
    return constants and rank(node.inputs[1]) == 1 and size >= 2 and axis % size == size - 1


# What becomes of the channels of an op's first input; None: the op does more than pass them on.
_Rule = Callable[[ir.Node, _Followed, Callable[[int], np.ndarray]], _Followed | None]


def _same(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    return x if all(is_constant(v) for v in node.inputs[1:] if v is not None) else None


def _pooled(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    return x if x.axis == 1 and (rank(node.inputs[0]) or 0) > 2 else None


def _reduced(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    size = rank(node.inputs[0])
    if axes is None or size is None or any(int(a) % size <= x.axis for a in np.ravel(axes)):
        return None
    return x


def _padded(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    pads, fill = (constant(v) for v in (*node.inputs[1:3], None, None)[:2])
    if pads is None or any(v is not None for v in node.inputs[3:]):
        return None
    absent = len(node.inputs) < 3 or node.inputs[2] is None
    zeros = absent or (fill is not None and not fill.any())
    before, after = (int(row[x.axis]) for row in pads.reshape(2, -1))
    if attribute(node, "mode", "constant") != "constant":
        return x if before == after == 0 else None
    if not zeros or min(before, after) < 0:
        return None
    return _Followed(np.concatenate([new(before), x.numbers, new(after)]), x.axis)


def _sliced(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    arrays = [constant(v) for v in node.inputs[1:]]
    size = rank(node.inputs[0])
    if len(arrays) < 3 or any(a is None for a in arrays) or size is None:
        return None
    starts, stops, axes = (np.ravel(a) for a in arrays[:3])  # type: ignore[arg-type]
    steps = np.ravel(arrays[3]) if len(arrays) > 3 else np.ones(len(axes))  # type: ignore[arg-type]
    numbers = x.numbers
    for start, end, axis, step in zip(starts, stops, axes, steps, strict=True):
        if int(axis) % size == x.axis:
            if step < 0:
                return None
            numbers = numbers[int(start) : int(end) : int(step)]
    return _Followed(numbers, x.axis)


def _transposed(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    size = rank(node.inputs[0]) or 0
    perm = attribute(node, "perm", tuple(range(size))[::-1])
    return _Followed(x.numbers, perm.index(x.axis)) if x.axis in perm else None


def _reshaped(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    """Rows and channels stay; positions behind a channel may join it, [N, C, H, W] -> [N, C*H*W].

    The last axis may stay as it is while those in front change, [N, T, C] -> [N*T, C].
    """
    old, out = dims(node.inputs[0]), dims(node.outputs[0])
    if old is None or out is None or len(out) < 2:
        return None
    channels = x.numbers.size
    if x.axis == len(old) - 1 and out[-1] == channels:
        return _Followed(x.numbers, len(out) - 1)
    if x.axis != 1 or old[0] != out[0] or old[0] is None:
        return None
    if out[1] == channels:
        return x
    inner = old[2:]
    if len(out) == 2 and all(isinstance(d, int) for d in inner):
        size = int(np.prod([int(d or 0) for d in inner]))
        return _Followed(np.repeat(x.numbers, size), 1) if out[1] == channels * size else None
    return None


def _resized(node: ir.Node, x: _Followed, new: Callable[[int], np.ndarray]) -> _Followed | None:
    out = dims(node.outputs[0])
    crops = attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    return x if out is not None and out[x.axis] == x.numbers.size and not crops else None


_FOLLOW: dict[str, _Rule] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"), _same),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pooled),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduced),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze"), _reshaped),
    "Pad": _padded,
    "Slice": _sliced,
    "Transpose": _transposed,
    "Resize": _resized,
}
# Ops that compute each element alone: what is done to one channel does not reach another.
_UNARY: dict[str, _Rule] = {
    **dict.fromkeys(("Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"), _same),
    **dict.fromkeys(("Mish", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"), _same),
}
