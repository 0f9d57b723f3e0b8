"""Value ranges of a float graph that hold for any input data."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import clip_limits
from qtool.loading.dequantize.affine import constant_array

# Operators whose output lies within the range of their inputs.
RANGE_PRESERVING_OPS = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Slice",
    "Gather", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "GlobalAveragePool",
    "GlobalMaxPool", "Concat", "ReduceMean", "ReduceMax", "ReduceMin",
}  # fmt: skip
# Operators whose output range does not depend on the input.
OUTPUT_RANGES = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, np.inf),
}
Limits = tuple[Any, Any]  # floats, or arrays of float64 that broadcast against the value


@dataclass(frozen=True)
class ValueRanges:
    """Ranges of float values, inferred on request by interval arithmetic.

    Attributes:
        limits: value -> (minimum, maximum), infinite where nothing is known.
    """

    limits: dict[ir.Value, Limits] = field(default_factory=dict)

    def of(self, value: ir.Value) -> Limits:
        """Return the minimum and the maximum that a float value can have."""
        if value not in self.limits:
            self.limits[value] = self._infer(value)
        return self.limits[value]

    def _infer(self, value: ir.Value) -> Limits:
        array, node = constant_array(value), value.producer()
        if array is not None and array.size:
            return array.min(), array.max()
        if node is None or node.domain != "":
            return -np.inf, np.inf
        if node.op_type in OUTPUT_RANGES:
            return OUTPUT_RANGES[node.op_type]
        if node.op_type == "Clip":
            lo, hi = clip_limits(node)
            return -np.inf if lo is None else lo, np.inf if hi is None else hi
        all_inputs = node.op_type in ("Concat", "Add", "Mul")
        sources = node.inputs if all_inputs else node.inputs[:1]
        if node.op_type not in (*RANGE_PRESERVING_OPS, "AveragePool", "Pad", "Add", "Mul"):
            return -np.inf, np.inf
        input_limits = [self.of(v) for v in sources if v is not None]
        if any(np.size(limit) > 1 for pair in input_limits for limit in pair):
            # Per-channel limits may no longer fit the output's layout.
            return -np.inf, np.inf
        lows, highs = [float(lo) for lo, _ in input_limits], [float(hi) for _, hi in input_limits]
        if node.op_type == "Add":
            return sum(lows), sum(highs)
        if node.op_type == "Mul":
            (a, b), (c, d) = zip(lows, highs, strict=True)
            # The extrema of a product lie at corners; 0 * inf counts as 0, since values are finite.
            corners = [0.0 if 0 in (x, y) else x * y for x in (a, b) for y in (c, d)]
            return min(corners), max(corners)
        if node.op_type in ("AveragePool", "Pad"):  # both may mix in padded values
            padded = (
                constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
            )
            if padded is None:
                return -np.inf, np.inf
            lows, highs = [*lows, float(padded)], [*highs, float(padded)]
        return min(lows), max(highs)
