"""Simulate equalization: the layers around an activation, rounded with its channels alike."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch

from qtool.diagnosis.facts import Facts
from qtool.diagnosis.replacements import exact_activations
from qtool.diagnosis.trials import Replacement, exact
from qtool.graph.queries import attribute, by_name, nodes_by_name, weight_axis
from qtool.quant.plan import Site
from qtool.quant.primitives import (
    PerTensor,
    QuantParams,
    QuantSpec,
    fake_quantize,
    params_from_range,
)

LARGEST_WEIGHT, LARGEST_SCALE = 1e18, 1e9
"""Two scales times a weight within these limits are a float32."""


def equalized(facts: Facts, values: Iterable[str]) -> dict[str, Replacement]:
    """Return activations, and the weights that make and read them, rounded as if equalized.

    With the channels c of an activation scaled by ``1 / s_c``::

        s_c = sqrt(r1_c / r2_c),  r1, r2 = ranges of channel c in the weights before and behind
        x'[c] = Q(x[c] / s_c) * s_c,   W' = Q(W * s_in / s_out) * s_out / s_in

    Source: Nagel et al. 2019, sec. 4.1, arXiv:1906.04721.

    Args:
        facts: of the run.
        values: names of activations between two layers.
    """
    scales = {name: scale for name in values if (scale := _scale(facts, name)) is not None}
    result = exact_activations(facts, scales)
    for name, scale in scales.items():
        statistics, spec = facts.measured.values[name], facts.plan.qparams(name).spec
        reach = float((statistics.limits / scale).max())
        grid = params_from_range(-reach if statistics.lo < 0 else 0.0, reach, spec)
        result[name] = _scaled(scale, _channel_axis(facts, name), grid)
    for site in facts.layers.values():
        if site.inputs[0] in scales or site.output in scales:
            result[site.weight or ""] = _weight(facts, site, scales)
            result |= {bias: exact for bias in (site.bias,) if bias}
    return result


def _scale(facts: Facts, value: str) -> np.ndarray | None:
    """Return the scale of each channel, [C]; None where layers on both sides do not share it."""
    makes = [site for site in facts.layers.values() if site.output == value]
    reads = [site for site in facts.layers.values() if site.inputs[0] == value]
    if len(makes) != 1 or len(reads) != 1:
        return None
    if any(facts.plan.qparams(site.weight or "").spec.bits == 1 for site in (*makes, *reads)):
        return None  # the signs of weights are the same under any scale
    node = nodes_by_name(facts.context.model.graph)[reads[0].name]
    name = reads[0].weight or ""
    array = facts.plan.weight(name, by_name(facts.context.model.graph)[name])
    axis = _input_axis(node)
    behind = np.abs(array).max(axis=tuple(k for k in range(array.ndim) if k != axis))
    before = facts.measured.sites[makes[0].name].weight_limits
    if before.shape != behind.shape or facts.measured.values[value].limits.shape != behind.shape:
        return None
    return channel_scales(before, behind)


def channel_scales(before: np.ndarray, behind: np.ndarray) -> np.ndarray | None:
    """Return the scales that make the weight ranges before and behind an activation equal.

    Args:
        before: largest magnitude of each channel in the weights that make the activation, [C].
        behind: largest magnitude of each channel in the weights that read it, [C].

    Returns:
        [C]; 1 where a range is 0. None where scaled weights may be too large for float32.
    """
    used = (before > 0) & (behind > 0)
    scale = np.where(used, np.sqrt(before / np.where(used, behind, 1.0)), 1.0)
    fits = max(before.max(), behind.max()) <= LARGEST_WEIGHT
    return scale if fits and np.abs(np.log(scale)).max() <= np.log(LARGEST_SCALE) else None


def _input_axis(node: ir.Node) -> int:
    """Return the axis of the input channels in the weight of a layer."""
    depthwise = node.op_type == "Conv" and attribute(node, "group", 1) > 1
    return weight_axis(node) if depthwise else 1 - weight_axis(node)


def _channel_axis(facts: Facts, value: str) -> int:
    """Return the axis of an activation's channels: 1 for images, else the last."""
    makes = [site.op for site in facts.layers.values() if site.output == value]
    return 1 if any(op.startswith("Conv") for op in makes) else -1


def _scaled(scale: np.ndarray, axis: int, grid: QuantParams) -> Replacement:
    def apply(tensor: torch.Tensor) -> torch.Tensor:
        factor = _along(scale, axis, tensor)
        return torch.as_tensor(fake_quantize(tensor / factor, grid) * factor)

    return apply


def _weight(facts: Facts, site: Site, scales: dict[str, np.ndarray]) -> Replacement:
    """Return a layer's weights rounded with the scales of its input and output channels."""
    node = nodes_by_name(facts.context.model.graph)[site.name]
    spec, out_axis = facts.plan.qparams(site.weight or "").spec, weight_axis(node)
    in_axis = _input_axis(node)
    made, read = scales.get(site.output), scales.get(site.inputs[0])

    def apply(tensor: torch.Tensor) -> torch.Tensor:
        factor = torch.ones_like(tensor)
        if made is not None and len(made) == tensor.shape[out_axis]:
            factor = factor / _along(made, out_axis, tensor)
        if read is not None and len(read) == tensor.shape[in_axis]:
            factor = factor * _along(read, in_axis, tensor)
        return _rounded(tensor * factor, spec, out_axis) / factor

    return apply


def _rounded(tensor: torch.Tensor, spec: QuantSpec, axis: int) -> torch.Tensor:
    """Round weights to nearest over their own limits, for the tensor or each output channel."""
    flat = tensor.movedim(axis, 0).flatten(1)
    lo, hi = flat.amin(1).cpu().numpy(), flat.amax(1).cpu().numpy()
    if isinstance(spec.granularity, PerTensor):
        lo, hi = lo.min(), hi.max()
    grid = params_from_range(lo, hi, replace(spec, scale_kind="float"))
    return torch.as_tensor(fake_quantize(tensor, grid))


def _along(scale: np.ndarray, axis: int, tensor: torch.Tensor) -> torch.Tensor:
    """Return scales of channels in a shape that broadcasts along an axis of a tensor."""
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return torch.as_tensor(scale, dtype=tensor.dtype, device=tensor.device).reshape(shape)
