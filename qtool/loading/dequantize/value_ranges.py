"""Between which numbers the float values of a graph are known to lie, whatever the data."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import clip_limits
from qtool.loading.dequantize.affine import numbers

# Ops whose output holds values of their input (or less): limits pass through them.
WITHIN = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Slice",
    "Gather", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "GlobalAveragePool",
    "GlobalMaxPool", "Concat", "ReduceMean", "ReduceMax", "ReduceMin",
}  # fmt: skip
BOUNDED = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, np.inf),
}
Limits = tuple[Any, Any]  # floats, or arrays of float64 that broadcast against the value


@dataclass(frozen=True)
class Ranges:
    """What is known so far.

    Attributes:
        known: value -> limits.
    """

    known: dict[ir.Value, Limits] = field(default_factory=dict)

    def of(self, value: ir.Value) -> Limits:
        """Between which numbers a float value is known to lie."""
        if value not in self.known:
            self.known[value] = self._found(value)
        return self.known[value]

    def _found(self, value: ir.Value) -> Limits:
        array, node = numbers(value), value.producer()
        if array is not None and array.size:
            return array.min(), array.max()
        if node is None or node.domain != "":
            return -np.inf, np.inf
        if node.op_type in BOUNDED:
            return BOUNDED[node.op_type]
        if node.op_type == "Clip":
            lo, hi = clip_limits(node)
            return -np.inf if lo is None else lo, np.inf if hi is None else hi
        several = node.op_type in ("Concat", "Add", "Mul")
        sources = node.inputs if several else node.inputs[:1]
        if node.op_type not in (*WITHIN, "AveragePool", "Pad", "Add", "Mul"):
            return -np.inf, np.inf
        ends = [self.of(v) for v in sources if v is not None]
        if any(np.size(end) > 1 for pair in ends for end in pair):
            return -np.inf, np.inf
        lows, highs = [float(lo) for lo, _ in ends], [float(hi) for _, hi in ends]
        if node.op_type == "Add":
            return sum(lows), sum(highs)
        if node.op_type == "Mul":
            (a, b), (c, d) = zip(lows, highs, strict=True)
            corners = [0.0 if 0 in (x, y) else x * y for x in (a, b) for y in (c, d)]
            return min(corners), max(corners)
        if node.op_type in ("AveragePool", "Pad"):  # which may count zeros, or add something else
            added = numbers(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
            if added is None:
                return -np.inf, np.inf
            lows, highs = [*lows, float(added)], [*highs, float(added)]
        return min(lows), max(highs)
