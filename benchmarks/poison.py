"""Scale the channels of one value of a network very differently; its function stays."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

# Every channel of the poisoned layer is scaled by exp(U(-SPREAD, SPREAD)), and back in the next.
SPREAD = 6.0


def poison(source: Path, target: Path) -> list[str]:
    """Write a network in which the channels of one value have very different ranges.

    The function stays: what a channel is scaled by, the next layer takes back. Returns the names of
    the layers that make and read the value; both lose by it.
    """
    model = onnx.load(source)
    weights = {each.name: each for each in model.graph.initializer}
    first, second = _consecutive(model.graph.node)
    rng = np.random.default_rng(0)
    factors = np.exp(rng.uniform(-SPREAD, SPREAD, weights[first.input[1]].dims[0]))
    for name, shape in ((first.input[1], (-1, 1, 1, 1)), (first.input[2], (-1,))):
        _scale(weights[name], factors.reshape(shape))
    _scale(weights[second.input[1]], 1 / factors.reshape(1, -1, 1, 1))
    onnx.save(model, target)
    return [str(first.name), str(second.name)]


def _consecutive(nodes: Sequence[Any]) -> tuple[Any, Any]:
    """Return two convolutions in the middle, of which one alone reads the other through a Relu."""
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    pairs = []
    for node in nodes:
        following = readers.get(node.output[0], [])
        if node.op_type == "Conv" and [n.op_type for n in following] == ["Relu"]:
            behind = readers.get(following[0].output[0], [])
            if [n.op_type for n in behind] == ["Conv"]:
                pairs.append((node, behind[0]))
    return pairs[len(pairs) // 2]


def _scale(tensor: Any, factors: np.ndarray) -> None:
    scaled = (numpy_helper.to_array(tensor) * factors).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
