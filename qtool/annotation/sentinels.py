"""Find the ops that carry sentinels: constants that only mask scores in front of a Softmax.

Encoders add -1e4, -3.4e38 or -inf to the scores of padding, or subtract 1e10 from them. Softmax
maps all of them to 0, but a grid that reaches to such a number has no codes left for the scores, so
these ops stay float.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, constant, is_float, name_of

# exp(-100) = 3.7e-44 is below the smallest normal float32: a score this far down weighs nothing.
LARGEST = -100.0

# Factors of a mask that are sentinels by their size, as in (mask - 1) * 1e9 and scores -
# (1 - mask) * 1e10: ops that turn them around. Scores have factors of up to 100 (CLIP's).
SMALLEST_FACTOR = 1e4
REVERSING = ("Mul", "Sub")

SOFTMAX = ("Softmax", "LogSoftmax")

# Ops through which a mask is built and reaches the scores. A product with weights ends the search.
CARRIERS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Neg", "Where", "Min", "Max", "Clip"),
        *("Cast", "CastLike"),
        *("ConstantOfShape", "Expand", "Tile", "Trilu", "Pad", "Identity", "Concat", "Gather"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"),
        *("ScatterND", "ScatterElements", *SOFTMAX),
    }
)


def sentinel_reasons(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Map each node that reads or writes a masked value in front of a Softmax to its reason.

    Args:
        nodes: of the main graph, in order.

    Returns:
        Node name -> why it stays float, naming the sentinel; empty without such constants.
    """
    sentinel: dict[ir.Value, float] = {}
    reading: dict[str, float] = {}
    for node in nodes:
        lowest = _lowest(node, sentinel)
        if lowest is None or node.op_type not in CARRIERS or node.domain not in ("", "ai.onnx"):
            continue
        reading[name_of(node)] = lowest
        if node.op_type not in SOFTMAX:
            sentinel.update({out: lowest for out in node.outputs if is_float(out)})
    ahead = _in_front_of_softmax(nodes, reading)
    return {
        name: f"the sentinel {lowest:.3g} masks scores in front of Softmax: a grid that reaches to "
        "it would have no codes for the scores"
        for name, lowest in reading.items()
        if name in ahead
    }


def _lowest(node: ir.Node, sentinel: dict[ir.Value, float]) -> float | None:
    """Return the lowest sentinel among the operands of a node, or None."""
    numbers = [sentinel[v] for v in node.inputs if v in sentinel]
    if node.op_type == "ConstantOfShape":
        fill = attribute(node, "value")
        numbers += _sentinels([fill.numpy()] if fill is not None else [])
    elif node.op_type in CARRIERS:
        arrays = [constant(v) for v in node.inputs if v is not None and is_float(v)]
        filled = [array for array in arrays if array is not None and array.size]
        numbers += _sentinels(filled)
        if node.op_type in REVERSING:
            largest = [float(array.max()) for array in filled]
            numbers += [-number for number in largest if number >= SMALLEST_FACTOR]
    return min(numbers, default=None)


def _sentinels(arrays: Iterable[np.ndarray]) -> list[float]:
    """Return the smallest element of each array that has one at or below LARGEST."""
    lowest = [float(a.min()) for a in arrays if a.size and a.dtype.kind == "f"]
    return [number for number in lowest if number <= LARGEST]


def _in_front_of_softmax(nodes: Sequence[ir.Node], names: Iterable[str]) -> set[str]:
    """Return the named nodes from which named nodes alone lead to a Softmax, and the Softmax."""
    chosen, ahead = set(names), set[str]()
    for node in reversed(nodes):
        if name_of(node) not in chosen:
            continue
        if node.op_type in SOFTMAX or any(
            name_of(reader) in ahead for out in node.outputs for reader, _ in out.uses()
        ):
            ahead.add(name_of(node))
    return ahead
