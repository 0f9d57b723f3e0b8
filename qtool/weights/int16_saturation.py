"""int16 saturation: x86 without VNNI adds pairs of u8 x s8 products in 16 bits (VPMADDUBSW).

255 * 127 + 255 * 127 = 64770 becomes 32767. This module lists the layers in which a pair of
products can saturate, computes the loss on real data, and widens weight scales so that none can.

A pair is two neighbours along the reduction of one output channel, the first at an even position.
ONNX Runtime's convolutions iterate over kernel positions and then input channels (channels last),
or the other way round. The list of layers at risk covers both orders and all neighbours; the
simulated loss is that of channels last. Depthwise convolutions are left out: their kernel widens to
int32 first. Codes include their zero points, which kernels subtract from the sums afterwards.

Source: Intel, instruction VPMADDUBSW; onnxruntime, "Quantize ONNX models", on reduce_range.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, by_name, nodes_by_name, weight_axis
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerChannel, QuantParams

LIMIT = 2**15 - 1

# Output positions of one layer that a simulation samples, and elements it processes at a time.
POSITIONS = 256
CHUNK = 1 << 24


def adds_pairs(isa: Sequence[str]) -> bool:
    """Return True when this machine is an x86 without VNNI.

    Args:
        isa: names of its instruction sets.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not any("vnni" in name for name in isa)


def orders(node: ir.Node, weight: np.ndarray) -> list[np.ndarray]:
    """Return the weights as [output channels, reduced], in every order that a kernel may use.

    Args:
        node: Conv, Gemm or MatMul.
        weight: its weights or their codes.

    Returns:
        Arrays, channels last first; empty for depthwise convolutions.
    """
    if weight.ndim <= 2:
        return [np.moveaxis(weight, weight_axis(node), 0)]
    if weight.shape[1] == 1 and int(attribute(node, "group", 1)) > 1:
        return []
    last = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return [last, weight.reshape(len(weight), -1)]


def largest_pairs(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Return the largest ``|w_i + w_(i+1)|`` of each output channel.

    Two equal inputs multiply that sum. A pair of opposite signs is never larger.

    Args:
        node: Conv, Gemm or MatMul.
        weight: its weights or their codes.

    Returns:
        Shape [output channels], type of the weights.
    """
    largest = np.zeros(weight.shape[weight_axis(node)], weight.dtype)
    for rows in orders(node, weight):
        if rows.shape[1] > 1:
            largest = np.maximum(largest, np.abs(rows[:, :-1] + rows[:, 1:]).max(1))
    return largest


def at_risk(model: ir.Model, plan: QuantPlan) -> list[str]:
    """Return the names of sites and dynamic sites in which a pair of products can leave int16.

    Args:
        model: the rewritten graph.
        plan: frozen.
    """
    nodes, names = nodes_by_name(model.graph), []
    for site in _u8s8_sites(plan):
        codes = plan.codes[site.weight or ""]
        x = plan.params(site.inputs[0])
        code = 255 if x is None else x.spec.qmax
        # Just wide enough for a sum of two codes: a weight may take much memory.
        pairs = largest_pairs(nodes[site.name], codes.astype(f"i{2 * codes.itemsize}"))
        if pairs.size and int(pairs.max()) * code > LIMIT:
            names.append(site.name)
    for name, dynamic in plan.dynamic.items():
        weights = [plan.codes[w].astype(np.int16) for w in dynamic.weights if w in plan.codes]
        if any(_saturates(rows) for codes in weights for rows in _both_axes(codes)):
            names.append(name)
    return names


def _saturates(rows: np.ndarray) -> bool:
    """Return True when two inputs of 255 and a pair of neighbouring codes can leave int16."""
    pairs = np.abs(rows[:, :-1] + rows[:, 1:])
    return bool(pairs.size) and int(pairs.max()) * 255 > LIMIT


def _both_axes(codes: np.ndarray) -> list[np.ndarray]:
    """Return the codes of a dynamic site as rows along either of the last two axes."""
    return [
        codes.reshape(-1, codes.shape[-1]),
        np.swapaxes(codes, -1, -2).reshape(-1, codes.shape[-2]),
    ]


def _u8s8_sites(plan: QuantPlan) -> list[Site]:
    """Return the sites with signed 8-bit weights and unsigned 8-bit inputs, which can saturate."""
    sites = []
    for site in plan.sites.values():
        x, w = plan.spec(site.inputs[0]), plan.spec(site.weight or "")
        unsigned = x is None or (not x.signed and x.bits <= 8)
        if w is not None and w.signed and w.bits <= 8 and site.weight in plan.codes and unsigned:
            sites.append(site)
    return sites


def safe_scales(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """Widen weight scales so that no pair of products leaves int16.

    scale = max(scale, max |w_i + w_(i+1)| / 127)

    Rounding adds at most a half to each weight, and 255 * 128 fits into int16. Channels without
    large neighbours lose no precision, others at most one bit.

    Args:
        model: the rewritten graph.
        plan: every weight has QuantParams, of scale kind ``float``.

    Returns:
        The plan with these grids; codes of widened weights are dropped, ``freeze`` rounds them.
    """
    nodes, values = nodes_by_name(model.graph), by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    for site in plan.sites.values():
        name = site.weight or ""
        params = grids.get(name)
        if not isinstance(params, QuantParams) or params.spec.bits != 8 or not params.spec.signed:
            continue
        weight = plan.weight(name, values[name])
        pairs = largest_pairs(nodes[site.name], weight.astype(np.float64)) / 127
        per_channel = isinstance(params.spec.granularity, PerChannel)
        least = np.asarray(pairs if per_channel else pairs.max(initial=0), np.float32)
        if np.any(least > params.scale):
            grids[name] = replace(params, scale=np.maximum(params.scale, least))
            codes.pop(name, None)
    return replace(plan, grids=grids, codes=codes)


def excess(patches: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute the error of saturation in each sum of products.

    Args:
        patches: uint8 codes, [positions, reduced].
        rows: int8 weights, [channels, reduced].

    Returns:
        Saturated minus exact sums, int64, [positions, channels].
    """
    reduced = rows.shape[1] - rows.shape[1] % 2
    wide = rows[:, :reduced].astype(np.int32).reshape(len(rows), -1, 2)
    channels, pairs = np.nonzero(np.abs(wide.sum(2)) * 255 > LIMIT)
    result = np.zeros((len(patches), len(rows)), np.int64)
    step = max(CHUNK // max(len(channels), 1), 1)
    for start in range(0, len(patches), step):
        part = patches[start : start + step, :reduced].astype(np.int32)
        part = part.reshape(len(part), -1, 2)[:, pairs]
        sums = (part * wide[channels, pairs]).sum(2)
        over = np.clip(sums, -LIMIT - 1, LIMIT) - sums
        for channel in np.unique(channels):
            result[start : start + step, channel] = over[:, channels == channel].sum(1)
    return result


@dataclass(frozen=True)
class SaturationLoss:
    """The error of saturation in one layer on real codes.

    Attributes:
        name: name of the site.
        share: share of the sums that saturation changed, 0 to 1.
        largest: largest change of a sum, relative to the largest sum.
    """

    name: str
    share: float
    largest: float


def simulate(
    model: ir.Model, plan: QuantPlan, codes: Mapping[str, np.ndarray], seed: int = 0
) -> list[SaturationLoss]:
    """Compute the error of saturation in each layer at risk, on sampled output positions.

    Args:
        model: the rewritten graph.
        plan: frozen.
        codes: value name -> uint8 codes of the layers' inputs on real samples.
        seed: seed of the choice of output positions.

    Returns:
        The layers in which a sum changed, largest change first.
    """
    nodes, losses = nodes_by_name(model.graph), []
    risky = set(at_risk(model, plan))
    for site in plan.sites.values():
        if site.name not in risky or site.inputs[0] not in codes:
            continue
        node, params = nodes[site.name], plan.params(site.inputs[0])
        zero = 0 if params is None else int(params.zero_point)
        rows = orders(node, plan.codes[site.weight or ""])[0]
        changed = total = 0
        most, size = 0, 1  # largest loss and largest sum so far
        for group, patches in enumerate(patches_of(node, codes[site.inputs[0]], zero, seed)):
            count = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
            part = rows.reshape(count, -1, rows.shape[1])[group]
            lost = excess(patches, part)
            sums = (patches.astype(np.int64) - zero) @ part.T.astype(np.int64)
            changed, total = changed + int(np.count_nonzero(lost)), total + lost.size
            most = max(most, int(np.abs(lost).max(initial=0)))
            size = max(size, int(np.abs(sums).max(initial=0)))
        if changed:
            losses.append(SaturationLoss(site.name, changed / total, most / size))
    return sorted(losses, key=lambda loss: -loss.largest)


def patches_of(node: ir.Node, x: np.ndarray, zero: int, seed: int) -> list[np.ndarray]:
    """Gather the inputs of randomly chosen outputs of a layer, channels last.

    Args:
        node: Conv, Gemm or MatMul.
        x: codes of its input, [batch, channels, ..] or [.., reduced].
        zero: the code of 0, used for padding.
        seed: seed of the choice among all output positions.

    Returns:
        One array [positions, reduced] for each group.
    """
    rng = np.random.default_rng(seed)
    if node.op_type != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        return [rows[rng.permutation(len(rows))[:POSITIONS]]]
    from qtool.runtime.ops.nn import window_pads  # imports torch

    rank, kernel = x.ndim - 2, attribute(node, "kernel_shape")
    if kernel is None:
        weight = node.inputs[1]
        kernel = tuple(weight.shape.numpy()[2:])  # type: ignore[union-attr]
    strides = attribute(node, "strides") or (1,) * rank
    dilations = attribute(node, "dilations") or (1,) * rank
    pads, auto = attribute(node, "pads"), attribute(node, "auto_pad", "NOTSET")
    begin, end = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto)
    sides = [(0, 0), (0, 0), *zip(begin, end, strict=True)]
    wide = np.pad(x, sides, constant_values=zero)
    sizes = [
        (wide.shape[2 + a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in range(rank)
    ]
    count = int(np.prod([len(x), *sizes]))
    chosen = np.unravel_index(rng.permutation(count)[:POSITIONS], [len(x), *sizes])
    taken = []
    for offset in np.ndindex(*kernel):
        at = [chosen[1 + a] * strides[a] + offset[a] * dilations[a] for a in range(rank)]
        taken.append(wide[(chosen[0], slice(None), *at)])  # [positions, channels]
    groups = int(attribute(node, "group", 1))
    stacked = np.stack(taken, 1)  # [positions, kernel, channels]
    parts = np.split(stacked, groups, axis=2)
    return [part.reshape(len(part), -1) for part in parts]
