"""Read a value of a calibrating session whole, or summarized inside ONNX Runtime.

ONNX Runtime computes convolutions in blocks of 16 channels. To return their outputs it converts
every element to NCHW and writes it to memory, which costs 40 % of MobileNetV2's inference; reading
all of it again for its limits costs another 25 %. Two nodes behind the value read the blocks
instead, and only their small outputs are returned:

    high[n, c] = max over h, w of x[n, c, h, w]                                  GlobalMaxPool
    sample[n, c, i, j] = x[n, c, i * stride + dh[c], j * stride + dw[c]]         Conv, one tap

The convolution has one weight of 1 in each channel, at a place (dh, dw) of its own, so that all
positions are sampled evenly. Its other weights are 0, and 0 times NaN or infinity is NaN: a sample
with an element that is not finite shows it, wherever it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from qtool.calibration.statistics import evenly_spread, limits, samples_of
from qtool.graph.edit import Names, add_initializer
from qtool.graph.queries import by_name, clip_limits, dims, sample_elements

# Channels of a block; values of other numbers of channels are not computed in blocks.
BLOCK = 16

# Elements of each sample that enter the histogram of a value.
SAMPLED = 1 << 12

# Elements of a sample below which converting the value costs less than two more nodes, where these
# sample it, and where they only read its limits.
LARGE, LARGE_UNSAMPLED = 1 << 16, 1 << 14

# Multiples of these, modulo 1, are evenly spread over the square. Source: M. Roberts 2018, "The
# unreasonable effectiveness of quasirandom sequences", R2.
SPREAD = (0.7548776662466927, 0.5698402909980532)


class Observation(Protocol):
    """A value of the float network as the session returns it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the session's outputs that it reads."""
        ...

    def limits(self, arrays: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """Return the limits of each sample, float64 [2, samples]; not finite where it is not.

        Args:
            arrays: the outputs of one batch.
            rows: samples of the batch; a value that they do not divide counts as one sample.
        """
        ...

    def elements(self, arrays: Mapping[str, np.ndarray], rows: int, seed: int) -> np.ndarray:
        """Return the elements that the histogram counts, evenly spread, samples first.

        Args:
            arrays: the outputs of one batch.
            rows: samples of the batch.
            seed: shifts the positions, where that is possible.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """A value that is returned whole: fed ones, small ones, and all that are not convolved."""

    name: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """The value itself."""
        return (self.name,)

    def limits(self, arrays: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """Return the limits of each sample."""
        return limits(self._elements(arrays), rows)

    def elements(self, arrays: Mapping[str, np.ndarray], rows: int, seed: int) -> np.ndarray:
        """Return evenly spread elements."""
        return evenly_spread(self._elements(arrays), rows * SAMPLED, seed)

    def _elements(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the array; a single 0 for one without elements, as an empty cache has."""
        array = arrays[self.name]
        return array if array.size else np.zeros(1, array.dtype)


@dataclass(frozen=True)
class Pooled:
    """A value that is at least 0 and summarized by two nodes behind it.

    Its lower limit is that of the sampled elements, or 0 without them; every grid contains 0.

    Attributes:
        high: name of the largest element of each channel.
        sample: name of the sampled elements, or of the channels' means.
        sampled: True for elements.
    """

    high: str
    sample: str
    sampled: bool

    @property
    def outputs(self) -> tuple[str, ...]:
        """Outputs of the two nodes."""
        return (self.high, self.sample)

    def limits(self, arrays: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """Return the limits of each sample, NaN where a sampled element is not finite."""
        high = samples_of(arrays[self.high], rows).max(1)
        sample = arrays[self.sample].reshape(len(high), -1)
        low = sample.min(1) if self.sampled else np.zeros_like(high)
        high[~np.isfinite(sample).all(1)] = np.nan
        return np.array([low, high], np.float64)

    def elements(self, arrays: Mapping[str, np.ndarray], rows: int, seed: int) -> np.ndarray:
        """Return all sampled elements; their places are the same in every batch."""
        return arrays[self.sample]


def observe(
    model: ir.Model, names: Iterable[str], histograms: bool
) -> tuple[ir.Model, dict[str, Observation]]:
    """Return the graph with the nodes that summarize values, and how each value is read.

    Args:
        model: the rewritten float graph, with shapes; it is not changed.
        names: computed values and graph inputs.
        histograms: False where only limits are read: a mean then replaces the sample.
    """
    values = by_name(model.graph)
    kinds: dict[str, Observation] = {name: Whole(name) for name in names}
    large = LARGE if histograms else LARGE_UNSAMPLED
    pooled = [name for name in kinds if _can_be_pooled(values[name], large)]
    if pooled:
        model = model.clone()
        values, unused = by_name(model.graph), Names(model.graph)
        # ONNX Runtime walks the graph backwards, from the last node that nothing reads: with the
        # first value's nodes last, they are numbered right behind the value's own node.
        for name in reversed(pooled):
            high = _add(unused, values[name], "GlobalMaxPool")
            add = _add_sampling if histograms else _add_mean
            kinds[name] = Pooled(high, add(unused, values[name]), histograms)
    return model, kinds


def returned_elements(value: ir.Value) -> int:
    """Count the elements of one sample that a session returns of an observed value."""
    if not _can_be_pooled(value, LARGE):
        return sample_elements(value)
    channels = (dims(value) or ())[1]
    return SAMPLED + (channels if isinstance(channels, int) else 0)


def _can_be_pooled(value: ir.Value, large: int) -> bool:
    """Return whether a value is a large map of at least 0 that is computed in blocks."""
    shape, producer = (dims(value) or ())[1:], value.producer()
    if producer is None or producer.op_type not in ("Relu", "Clip") or producer.domain:
        return False
    if value.dtype != ir.DataType.FLOAT or clip_limits(producer)[0] != 0:
        return False
    sizes = [d for d in shape if isinstance(d, int)]
    return len(sizes) == len(shape) == 3 and sizes[0] % BLOCK == 0 and prod(sizes) >= large


def _add_mean(unused: Names, value: ir.Value) -> str:
    """Add a node whose output shows an element that is not finite, and return its name."""
    return _add(unused, value, "GlobalAveragePool")


def _add_sampling(unused: Names, value: ir.Value) -> str:
    """Add the node that samples elements, and return the name of its output."""
    channels, *size = (int(d) for d in (dims(value) or ())[1:] if isinstance(d, int))
    stride, counts = 1, size
    while channels * counts[0] * counts[1] > SAMPLED and max(counts) > 1:
        stride += 1
        counts = [max(1, side // stride) for side in size]
    # The last window reaches the last row and column, and so does the tap of some channel.
    kernel = [side - (count - 1) * stride for side, count in zip(size, counts, strict=True)]
    taps = np.zeros((channels, 1, *kernel), np.float32)
    places = np.floor(np.outer(np.arange(channels) + 0.5, SPREAD) % 1 * kernel).astype(np.int64)
    taps[np.arange(channels), 0, places[:, 0], places[:, 1]] = 1
    weight = add_initializer(_graph(value), unused.unique(f"{value.name}_taps"), taps)
    attributes = {"group": channels, "kernel_shape": kernel, "strides": [stride, stride]}
    return _add(unused, value, "Conv", weight, **attributes)


def _add(unused: Names, value: ir.Value, op: str, *inputs: ir.Value, **attributes: Any) -> str:
    """Append a node that reads a value, and return the name of its output."""
    attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
    name = unused.unique(f"{value.name}_{op}")
    node = ir.Node("", op, [value, *inputs], attrs, name=name)
    out = node.outputs[0]
    out.name, out.type = unused.unique(f"{name}_output"), value.type
    _graph(value).append(node)
    return out.name


def _graph(value: ir.Value) -> ir.Graph:
    graph = value.graph
    if not isinstance(graph, ir.Graph):
        raise AssertionError(f"{value.name} belongs to no graph")
    return graph
