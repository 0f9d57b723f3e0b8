"""Give the quantities that one last convolution computes grids of their own."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.channels import Layer
from qtool.graph.edit import add_constant, replace_value, unique
from qtool.graph.layers import layer_weight, oriented
from qtool.graph.queries import WEIGHTED_OPS, constant, is_constant, macs, name_of, rank, readers
from qtool.rewrites.rewrite import IsInteger, Samples
from qtool.rewrites.scaling.equalize import scale_layer

# A factor that is a power of 2 changes the exponent of a weight and no other bit. That of a channel
# which is almost silent in the samples is limited.
LARGEST = 2.0**8
# Below it (12 dB for the channels that gain most) the product is not worth its time.
WORTH = 4.0
# A grid [low, high] may grow by this share of its width on its shorter side: 1.6 dB for the others.
GROWTH = 0.2

# Samples whose ranges are compared, fewer of large networks: a power of 2 needs no exact range.
FEWEST, MOST = 8, 32
MACS = 20_000_000_000

RECURRENT = ("LSTM", "GRU", "RNN", "Loop", "Scan", "If")


def scale_output_channels(model: ir.Model, is_integer: IsInteger, samples: Samples) -> int:
    """Scale small channels of a last convolution up to its grid, and back behind it.

    A convolution of a detector computes boxes beside scores, whose logarithms are ten times as
    large, and its kernel writes codes of one grid. With [l_c, h_c] the range of a channel and
    [l, h] that of all channels in 8 to 32 samples::

        f_c = 2^floor(log2(min(h / h_c, l / l_c))),   y_c = 1/f_c * conv(x; f_c W_c, f_c b_c)

    where h and l are at least a fifth of h - l away from 0. The factors are powers of 2, so the
    float function is the same to the last bit; the product behind the convolution is a float Mul
    of its channels. Convolutions that another layer with weights follows, or a Relu or Clip that
    becomes part of their grid, stay as they are, and so do those where no factor reaches 4.

    Args:
        model: changed in place.
        is_integer: returns whether a node may compute on integers.
        samples: values of calibration samples.

    Returns:
        The number of convolutions that were scaled.
    """
    nodes = [node for node in _last_convolutions(model.graph) if is_integer(node)]
    rows = int(np.clip(MACS // max(sum(map(macs, model.graph)), 1), FEWEST, MOST))
    names = [name_of(node.outputs[0]) for node in nodes]
    ranges = _ranges(names, samples, rows) if nodes else {}
    factors = {node: channel_factors(*ranges[name_of(node.outputs[0])]) for node in nodes}
    scaled = {node: factor for node, factor in factors.items() if factor.max(initial=1) >= WORTH}
    for node, factor in scaled.items():
        _scale(node, factor)
    return len(scaled)


def channel_factors(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Return the power of 2 that each channel is multiplied with; 1 for a channel of zeros.

    Args:
        lower: smallest value of each channel.
        upper: largest value of each channel.
    """
    low, high = min(lower.min(initial=0), 0.0), max(upper.max(initial=0), 0.0)
    reserve = GROWTH * (high - low)
    low, high = min(low, -reserve), max(high, reserve)
    ratio = np.full(lower.shape, np.inf)
    np.divide(high, upper, out=ratio, where=upper > 0)
    below = np.divide(low, lower, out=np.full(lower.shape, np.inf), where=lower < 0)
    ratio = np.minimum(ratio, below)
    exponents = np.floor(np.log2(np.where(np.isfinite(ratio), ratio, 1)))
    return np.asarray(np.clip(2.0**exponents, 1, LARGEST), np.float32)


def _last_convolutions(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the convolutions behind which no layer with weights follows."""
    followed: set[ir.Node] = set()
    for node in reversed(list(graph)):
        behind = [reader for out in node.outputs for reader in readers(out)]
        weighted = any(r in followed or _has_weights(r) or r.graph is not graph for r in behind)
        if weighted:
            followed.add(node)
        elif node.op_type == "Conv" and _is_scalable(node, behind):
            yield node


def _has_weights(node: ir.Node) -> bool:
    constants = any(is_constant(value) for value in node.inputs[:2])
    return node.op_type in RECURRENT or (node.op_type in WEIGHTED_OPS and constants)


def _is_scalable(node: ir.Node, behind: Sequence[ir.Node]) -> bool:
    """Return whether a convolution has weights of its own, and no activation in its grid."""
    own = all(len(v.uses()) == 1 for v in node.inputs[1:] if v is not None)
    arrays = all(constant(value) is not None for value in node.inputs[1:])
    return own and arrays and not any(r.op_type in ("Relu", "Clip") for r in behind)


def _ranges(
    names: Sequence[str], samples: Samples, rows: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the smallest and the largest value of each channel, on the first so many samples."""
    ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for batch in samples.observe(names, False):
        for name, array in batch.items():
            axes = (0, *range(2, array.ndim))
            part = array.min(axis=axes), array.max(axis=axes)
            before = ranges.get(name, part)
            ranges[name] = np.minimum(before[0], part[0]), np.maximum(before[1], part[1])
        rows -= len(next(iter(batch.values())))
        if rows <= 0:
            break
    return ranges


def _scale(node: ir.Node, factor: np.ndarray) -> None:
    """Scale the channels that a convolution computes, and multiply them back behind it."""
    groups, outputs, inputs, _ = oriented(node, layer_weight(node)).shape
    unscaled = factor.size  # the number of all input channels
    written = np.arange(factor.size).reshape(groups, outputs)
    layer = Layer(node, written, np.full((groups, inputs), unscaled))
    scale_layer(layer, np.append(1 / factor, np.float32(1)))
    _multiply_behind(node, 1 / factor)


def _multiply_behind(node: ir.Node, factor: np.ndarray) -> None:
    """Multiply the channels of a convolution's output, for all its readers."""
    out, graph = node.outputs[0], node.graph
    if graph is None:
        raise AssertionError(f"{node.name} belongs to no graph")
    name, shape = out.name, (1, -1, *[1] * ((rank(out) or 4) - 2))
    scales = add_constant(graph, f"{node.name}_scales", factor.reshape(shape))
    product = ir.Node("", "Mul", [out, scales], name=unique(graph, f"{node.name}/scale"))
    product.outputs[0].type, product.outputs[0].shape = out.type, out.shape
    graph.insert_after(node, product)
    replace_value(out, product.outputs[0])
    product.replace_input_with(0, out)
    out.name = unique(graph, f"{name}_scaled")
