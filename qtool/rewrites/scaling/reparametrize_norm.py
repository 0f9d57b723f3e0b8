"""Give all channels behind a LayerNormalization one range, in closed form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.layers import is_layer, oriented, restored
from qtool.graph.queries import attribute, constant, dims, is_constant, rank
from qtool.rewrites.rewrite import IsInteger, Samples
from qtool.rewrites.scaling.equalize import replace_array

# A channel whose range is a smaller share of its largest magnitude keeps its values: its zero point
# would be in the thousands, and so would be the shift of all other channels towards the mean.
VARIES = 1e-3


@dataclass(frozen=True, eq=False)
class _Block:
    """A LayerNormalization with factors of its own and the linear layers that alone read it."""

    norm: ir.Node
    readers: tuple[ir.Node, ...]

    @property
    def output(self) -> str:
        """Name of the normalized value."""
        return self.norm.outputs[0].name or ""


def reparametrize_norm(model: ir.Model, is_integer: IsInteger, samples: Samples) -> int:
    """Give all channels behind a LayerNormalization one range (RepQ-ViT); optional.

    With s and z the scale and zero point that each channel of the output x would have alone, and
    s', z' their means over channels::

        r1 = s / s',  r2 = z - z'
        gamma /= r1,  beta <- (beta + s r2) / r1,  W <- W diag(r1),  b <- b - W (s r2)

    after which one grid for the tensor gives each channel the codes of its own grid. The float
    function stays. Only where nothing but linear layers with biases read x (pre-norm
    transformers); ranges are the smallest and largest values on calibration samples.

    Source: Li et al. 2023, "RepQ-ViT", sec. 3.2, arXiv:2212.08254.
    Departure: zero points are not rounded before their mean is taken.
    """
    blocks = [b for b in _blocks(model.graph) if all(is_integer(node) for node in b.readers)]
    if not blocks:
        return 0
    ranges = _ranges([block.output for block in blocks], samples)
    for block in blocks:
        low, high = ranges[block.output]
        factor, shift = common_grid(low, high)
        _apply(block, factor, shift)
    return len(blocks)


def common_grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return r1 = s / s' and s r2 = s (z - z'), [channels]; x' = (x + s r2) / r1.

    With s = (high - low) / L and z = -low / s the number of steps L cancels. A channel that hardly
    varies keeps its values.

    Args:
        low: smallest value of each channel.
        high: largest value of each channel.
    """
    width = high - low
    alive = width > VARIES * np.maximum(np.abs(low), np.abs(high))
    if not alive.any():
        return np.ones_like(width), np.zeros_like(width)
    safe = np.where(alive, width, 1.0)
    zero = -low / safe
    shift = safe * (zero - zero[alive].mean())
    return np.where(alive, width / width[alive].mean(), 1.0), np.where(alive, shift, 0.0)


def _blocks(graph: ir.Graph) -> Iterator[_Block]:
    for node in graph:
        if node.op_type != "LayerNormalization" or len(node.inputs) < 3:
            continue
        factors, out = node.inputs[1:3], node.outputs[0]
        size = rank(out) or 0
        last = size >= 2 and int(attribute(node, "axis", -1)) % size == size - 1
        own = all(v is not None and is_constant(v) and len(v.uses()) == 1 for v in factors)
        if not last or not own or rank(factors[0]) != 1:
            continue
        readers = _linear_readers(out)
        if readers:
            yield _Block(node, tuple(readers))


def _linear_readers(value: ir.Value) -> list[ir.Node] | None:
    """Return the linear layers that read a value's last axis; None where anything else reads it."""
    if value.is_graph_output():
        return None
    readers: list[ir.Node] = []
    for node, position in value.uses():
        if position == 0 and _takes_shift(node):
            readers.append(node)
            continue
        rows_only = node.op_type == "Reshape" and position == 0 and _same_last_axis(node)
        further = _linear_readers(node.outputs[0]) if rows_only else None
        if further is None:
            return None
        readers += further
    return readers


def _same_last_axis(node: ir.Node) -> bool:
    old, new = dims(node.inputs[0]), dims(node.outputs[0])
    if not old or not new:
        return False
    return isinstance(old[-1], int) and old[-1] == new[-1]


def _takes_shift(node: ir.Node) -> bool:
    """Return whether a node is a Gemm whose weight and bias nothing else reads."""
    if node.op_type != "Gemm" or not is_layer(node) or len(node.inputs) < 3:
        return False
    return all(v is not None and is_constant(v) and len(v.uses()) == 1 for v in node.inputs[1:])


def _ranges(names: Sequence[str], samples: Samples) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return smallest and largest value of each channel on the samples that are fitted to."""
    low = {name: np.array(np.inf) for name in names}
    high = {name: np.array(-np.inf) for name in names}
    for batch in samples.observe(names, False):
        for name, array in batch.items():
            rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
            low[name] = np.minimum(low[name], rows.min(0))
            high[name] = np.maximum(high[name], rows.max(0))
    return {name: (low[name], high[name]) for name in names}


def _apply(block: _Block, factor: np.ndarray, shift: np.ndarray) -> None:
    gamma, beta = block.norm.inputs[1:3]
    for value, new in (
        (gamma, _array(gamma) / factor),
        (beta, (_array(beta) + shift) / factor),
    ):
        _store(value, new)
    for node in block.readers:
        weight, bias = node.inputs[1:3]
        w = oriented(node, _array(weight))
        _store(bias, _array(bias) - w[0, :, :, 0] @ shift)
        _store(weight, restored(node, w * factor[None, None, :, None], _array(weight).shape))


def _array(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    if array is None:
        raise AssertionError("a factor is not constant")
    return array.astype(np.float64)


def _store(value: ir.Value | None, array: np.ndarray) -> None:
    if value is not None:
        replace_array(value, array.astype(np.float32))
