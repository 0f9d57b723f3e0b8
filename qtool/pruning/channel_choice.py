"""Choose which channels stay by the error that removing them causes, for each operation saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import RecipeError, UnsupportedError
from qtool.graph.channels import Channels, Layer
from qtool.graph.layers import layer_weight, oriented, restored
from qtool.graph.queries import name_of
from qtool.pruning.channels import ChannelSet, channel_sets, layer_macs, other_macs
from qtool.report.sparsity_schema import ChannelSparsity
from qtool.runtime.executor import Executor
from qtool.steps.context import Context
from qtool.steps.distance import distance

# Integer kernels compute so many channels together, and fewer in the same time (measured: 8 as slow
# as 16, 24 slower than 32).
KERNEL_CHANNELS = 16
# Parts that a large set is removed in.
PARTS = 8
# Calibration samples on which the error is measured.
SAMPLES = 64


@dataclass(frozen=True)
class ChannelChoice:
    """The channels that stay.

    Attributes:
        stays: by number of channel.
        counts: for the report.
    """

    stays: np.ndarray
    counts: ChannelSparsity


def choose_channels(context: Context, channels: Channels, share: float) -> ChannelChoice:
    """Return the channels that stay, so that a share of the multiply-accumulates is gone.

    Greedy: of all sets of channels that go together, the one gives its next part whose removal
    adds least error for each multiply-accumulate that kernels save, until enough are saved; kernels
    compute KERNEL_CHANNELS channels at least. The error is the
    distance of the network's first output to the whole network's on calibration samples; which
    channels of a set go first, their weights say. A branch of a residual sum may go as a whole.

    Args:
        context: holds the graph and the samples; no labels are read.
        channels: of :func:`qtool.pruning.channels.removable_channels`.
        share: of the multiply-accumulates to remove, 0 to 1.

    Source: Yang et al. 2018, "NetAdapt", alg. 1, arXiv:1804.03230.
    Departure: no training between the choices; sets keep multiples of KERNEL_CHANNELS channels.

    Raises:
        UnsupportedError: no channel can be removed.
        RecipeError: the share cannot be reached.
    """
    sets = channel_sets(channels)
    if not sets:
        raise UnsupportedError(
            "pruning.channels: no channel of the network can be removed: found no layer whose "
            "outputs reach other layers with weights alone"
        )
    layers = channels.layers
    network = _MaskedNetwork(context, layers)
    stays, fixed = np.ones(channels.count, bool), other_macs(context.model, layers)
    before = now = fixed + _macs(layers, stays)
    limit, error = (1 - share) * before, 0.0
    candidates = [_Candidate(each) for each in sets]
    while now > limit:
        best = _next(candidates, network, stays, error)
        if best is None:
            raise RecipeError(
                f"found {share:.0%}, expected at most {1 - now / before:.0%}: the rest of the "
                "multiply-accumulates is in channels that cannot be removed; write less",
                ("pruning", "channels"),
            )
        error, stays = best[0].error, best[1]
        now = fixed + _macs(layers, stays)
        context.progress("channels", min(before - now, before - int(limit)), before - int(limit))
    total = sum(len(each.numbers) for each in sets)
    removed = total - sum(int(stays[each.numbers].sum()) for each in sets)
    counts = ChannelSparsity(channels=total, removed=removed, float_macs=before, macs=now)
    return ChannelChoice(stays, counts)


@dataclass
class _Candidate:
    """A set of channels, and what removing its next part would cost.

    Attributes:
        channels: the set.
        error: of the network without the next part, when it was measured last.
        ratio: error added for each multiply-accumulate saved, when it was measured last.
    """

    channels: ChannelSet
    error: float = 0.0
    ratio: float = 0.0

    def without_next(self, layers: Sequence[Layer], stays: np.ndarray) -> np.ndarray | None:
        """Return which channels stay when the set's next part is gone too; None where none may go.

        A small set goes as a whole where that leaves no layer without channels, else by half.
        """
        size = len(self.channels.numbers)
        rest = self.channels.numbers[stays[self.channels.numbers]]
        sizes = [max(KERNEL_CHANNELS, size // PARTS // KERNEL_CHANNELS * KERNEL_CHANNELS)]
        sizes = [size, size // 2] if size <= KERNEL_CHANNELS else sizes
        for part in sizes:
            result = stays.copy()
            result[rest[:part]] = False
            left = len(rest) - part
            # What is left is nothing, or can be computed without waste.
            if not 0 < part <= len(rest) or 0 < left < min(sizes):
                continue
            if self.channels.is_branch or _have_channels(layers, self.channels, result):
                return result
        return None


def _have_channels(layers: Sequence[Layer], channels: ChannelSet, stays: np.ndarray) -> bool:
    """Return whether the layers that write or read channels of a set have some that stay."""
    sides = [side for layer in layers for side in (layer.outputs, layer.inputs)]
    touched = [side for side in sides if np.isin(side, channels.numbers).any()]
    return all(stays[side].any() for side in touched)


def _next(
    candidates: Sequence[_Candidate], network: "_MaskedNetwork", stays: np.ndarray, error: float
) -> tuple[_Candidate, np.ndarray] | None:
    """Return the candidate of least error for each operation saved, and what stays without it.

    Ratios mostly rise as more is removed, so those measured before serve as lower limits:
    candidates are measured again in their order until one stays the first. None where none is left.
    """
    pending = {id(each): each.without_next(network.layers, stays) for each in candidates}
    rest = [each for each in candidates if pending[id(each)] is not None]
    measured: set[int] = set()
    whole = _kernel_macs(network.layers, stays)
    while rest:
        best = min(rest, key=lambda each: each.ratio)
        without = pending[id(best)]
        if without is None:
            raise AssertionError("candidates without a next part are left out")
        if id(best) in measured:
            return best, without
        measured.add(id(best))
        saved = whole - _kernel_macs(network.layers, without)
        best.error = network.error(without)
        best.ratio = max(best.error - error, 0.0) / max(saved, 1)
    return None


def _kernel_macs(layers: Sequence[Layer], stays: np.ndarray) -> int:
    """Return what kernels compute that pad channels to multiples of KERNEL_CHANNELS."""
    return sum(layer_macs(layer, stays, KERNEL_CHANNELS) for layer in layers)


def _macs(layers: Sequence[Layer], stays: np.ndarray) -> int:
    """Return the multiply-accumulates of layers with the channels that stay."""
    return sum(layer_macs(layer, stays) for layer in layers)


@dataclass
class _MaskedNetwork:
    """The float network without some channels: layers do not read them.

    Attributes:
        context: holds the graph and the samples.
        layers: with weights.
    """

    context: Context
    layers: Sequence[Layer]
    _executor: Executor = field(init=False)
    _feeds: list[tuple[dict[str, np.ndarray], int]] = field(init=False)
    _reference: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        context = self.context
        count = min(SAMPLES, context.fit.count)
        chosen = context.fit.take([k * context.fit.count // count for k in range(count)])
        self._executor = Executor(context.model, context.device)
        self._feeds = list(context.feeds(chosen))
        self._reference = self._outputs({})

    def error(self, stays: np.ndarray) -> float:
        """Return the distance of the first output to the whole network's."""
        return distance(self._reference, self._outputs(masked_weights(self.layers, stays)))

    def _outputs(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        def observe(value: ir.Value, tensor: Any) -> Any:
            replaced = tensors.get(value.name or "")
            return tensor if replaced is None else replaced.to(tensor)

        name, parts = self.context.first_output, []
        with torch.inference_mode():
            for feeds, valid in self._feeds:
                output = self._executor(feeds, observe, [name])[name]
                parts.append(self.context.samples_of(output, valid).float().cpu().numpy())
        return np.concatenate(parts)


def masked_weights(layers: Sequence[Layer], stays: np.ndarray) -> dict[str, np.ndarray]:
    """Return weights that are 0 for inputs that are gone, and biases of layers without any input.

    Args:
        layers: with weights.
        stays: by number of channel.
    """
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        inputs = stays[layer.inputs]
        if inputs.all():
            continue
        weight = layer_weight(layer.node)
        array = oriented(layer.node, weight) * inputs[:, None, :, None]
        value = layer.node.inputs[1]
        if value is not None:
            arrays[name_of(value)] = restored(layer.node, array, weight.shape)
        bias = layer.node.inputs[2] if len(layer.node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None and not inputs.any():
            arrays[name_of(bias)] = np.zeros_like(bias.const_value.numpy())
    return arrays
