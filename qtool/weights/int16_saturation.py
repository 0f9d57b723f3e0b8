"""int16 saturation: x86 without VNNI adds pairs of u8 x s8 products in 16 bits (VPMADDUBSW).

255 * 127 + 255 * 127 = 64770 becomes 32767. Which layers can meet that, what it takes from their
sums on real data, and scales with which no pair can.

A pair is two neighbours along the reduction of one output channel, the first at an even place. ONNX
Runtime's convolutions walk through kernel positions and then input channels (channels last), or the
other way round; what can happen is judged for both orders and every neighbour, what does happen for
channels last. Depthwise convolutions have a kernel that widens first and are never met. Codes count
as they are, zero points included: kernels subtract their share from the sums.

Source: Intel, instruction VPMADDUBSW; onnxruntime, "Quantize ONNX models", on reduce_range.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, nodes_by_name, weight_axis
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerChannel, QuantParams

LIMIT = 2**15 - 1

# Output positions of one layer that a simulation looks at, and elements it holds at a time.
POSITIONS = 256
HELD = 1 << 24


def adds_pairs(isa: Sequence[str]) -> bool:
    """True when this machine is an x86 without VNNI, by the names of its instruction sets."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not any("vnni" in name for name in isa)


def orders(node: ir.Node, weight: np.ndarray) -> list[np.ndarray]:
    """Each output channel's weights as a row, [channels, reduced], in every order a kernel may use.

    The first is the one that simulations use: channels last. None for depthwise convolutions.
    """
    if weight.ndim <= 2:
        return [np.moveaxis(weight, weight_axis(node), 0)]
    if weight.shape[1] == 1 and int(attribute(node, "group", 1)) > 1:
        return []
    last = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    return [last, weight.reshape(len(weight), -1)]


def largest_pairs(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Largest ``|w_i + w_(i+1)|`` of each output channel: what a pair of equal inputs multiplies.

    Weights of opposite signs stay below the larger one alone.
    """
    found = np.zeros(weight.shape[weight_axis(node)], weight.dtype)
    for rows in orders(node, weight):
        if rows.shape[1] > 1:
            found = np.maximum(found, np.abs(rows[:, :-1] + rows[:, 1:]).max(1))
    return found


def at_risk(model: ir.Model, plan: QuantPlan) -> list[str]:
    """Sites in which some inputs make some pair of products leave int16.

    Args:
        model: the rewritten graph.
        plan: frozen.
    """
    nodes, found = nodes_by_name(model.graph), []
    for site in _pairing(plan):
        codes = plan.codes[site.weight or ""]
        largest = plan.params(site.inputs[0])
        code = 255 if largest is None else largest.spec.qmax
        # Wide enough for a sum of two codes, and no wider: a weight may be large.
        pairs = largest_pairs(nodes[site.name], codes.astype(f"i{2 * codes.itemsize}"))
        if pairs.size and int(pairs.max()) * code > LIMIT:
            found.append(site.name)
    for name, dynamic in plan.dynamic.items():
        held = [plan.codes[w].astype(np.int16) for w in dynamic.weights if w in plan.codes]
        if any(_wide(rows) for codes in held for rows in _any_order(codes)):
            found.append(name)
    return found


def _wide(rows: np.ndarray) -> bool:
    pairs = np.abs(rows[:, :-1] + rows[:, 1:])
    return bool(pairs.size) and int(pairs.max()) * 255 > LIMIT


def _any_order(codes: np.ndarray) -> list[np.ndarray]:
    """Weights of an op whose input finds its grid while it runs, along either of the last axes."""
    return [
        codes.reshape(-1, codes.shape[-1]),
        np.swapaxes(codes, -1, -2).reshape(-1, codes.shape[-2]),
    ]


def _pairing(plan: QuantPlan) -> list[Site]:
    """Sites with signed 8-bit weights and unsigned 8-bit inputs: the pairing that saturates."""
    found = []
    for site in plan.sites.values():
        x, w = plan.spec(site.inputs[0]), plan.spec(site.weight or "")
        unsigned = x is None or (not x.signed and x.bits <= 8)
        if w is not None and w.signed and w.bits <= 8 and site.weight in plan.codes and unsigned:
            found.append(site)
    return found


def safe_scales(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """The plan with weight scales so wide that no pair of products leaves int16.

    A scale becomes at least ``largest pair of float weights / 127``: rounding adds a half to each,
    and 255 * 128 fits. Where large weights are no neighbours nothing is lost; at worst one bit is.

    Args:
        model: the rewritten graph.
        plan: grids are found, scales of weights are of the float kind.
    """
    nodes, held = nodes_by_name(model.graph), model.graph.initializers
    grids, codes = dict(plan.grids), dict(plan.codes)
    for site in plan.sites.values():
        found = grids.get(site.weight or "")
        if not isinstance(found, QuantParams) or found.spec.bits != 8 or found.spec.signed is False:
            continue
        tensor = held[site.weight or ""].const_value
        weight = plan.weight_overrides.get(
            site.weight or "", None if tensor is None else tensor.numpy()
        )
        if weight is None:
            raise AssertionError(f"{site.weight} has no data")
        pairs = largest_pairs(nodes[site.name], weight.astype(np.float64)) / 127
        each = isinstance(found.spec.granularity, PerChannel)
        least = np.asarray(pairs if each else pairs.max(initial=0), np.float32)
        if np.any(least > found.scale):
            grids[site.weight or ""] = replace(found, scale=np.maximum(found.scale, least))
            codes.pop(site.weight or "", None)
    return replace(plan, grids=grids, codes=codes)


def excess(patches: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What saturation takes from each sum of products.

    Args:
        patches: uint8 codes, [positions, reduced].
        rows: int8 weights, [channels, reduced].

    Returns:
        Saturated minus exact sums, int64, [positions, channels].
    """
    reduced = rows.shape[1] - rows.shape[1] % 2
    wide = rows[:, :reduced].astype(np.int32).reshape(len(rows), -1, 2)
    channels, places = np.nonzero(np.abs(wide.sum(2)) * 255 > LIMIT)
    result = np.zeros((len(patches), len(rows)), np.int64)
    step = max(HELD // max(len(channels), 1), 1)
    for start in range(0, len(patches), step):
        part = patches[start : start + step, :reduced].astype(np.int32)
        part = part.reshape(len(part), -1, 2)[:, places]
        sums = (part * wide[channels, places]).sum(2)
        over = np.clip(sums, -LIMIT - 1, LIMIT) - sums
        for channel in np.unique(channels):
            result[start : start + step, channel] = over[:, channels == channel].sum(1)
    return result


@dataclass(frozen=True)
class Seen:
    """What saturation did to one layer on real codes.

    Attributes:
        name: of the site.
        share: of the sums that lost something.
        largest: the most that one lost, in units of the largest sum.
    """

    name: str
    share: float
    largest: float


def simulate(
    model: ir.Model, plan: QuantPlan, codes: Mapping[str, np.ndarray], seed: int = 0
) -> list[Seen]:
    """What saturating pairs take from the sums of each layer at risk.

    Args:
        model: the rewritten graph.
        plan: frozen.
        codes: uint8, by value name: inputs of the layers, on real samples.
        seed: chooses the output positions that are looked at.

    Returns:
        The layers that lost something, the worst first.
    """
    nodes, found = nodes_by_name(model.graph), []
    risky = set(at_risk(model, plan))
    for site in plan.sites.values():
        if site.name not in risky or site.inputs[0] not in codes:
            continue
        node, params = nodes[site.name], plan.params(site.inputs[0])
        zero = 0 if params is None else int(params.zero_point)
        rows = orders(node, plan.codes[site.weight or ""])[0]
        changed = total = 0
        most, size = 0, 1  # of what is lost, of the sums
        for group, patches in enumerate(patches_of(node, codes[site.inputs[0]], zero, seed)):
            count = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
            part = rows.reshape(count, -1, rows.shape[1])[group]
            lost = excess(patches, part)
            sums = (patches.astype(np.int64) - zero) @ part.T.astype(np.int64)
            changed, total = changed + int(np.count_nonzero(lost)), total + lost.size
            most = max(most, int(np.abs(lost).max(initial=0)))
            size = max(size, int(np.abs(sums).max(initial=0)))
        if changed:
            found.append(Seen(site.name, changed / total, most / size))
    return sorted(found, key=lambda seen: -seen.largest)


def patches_of(node: ir.Node, x: np.ndarray, zero: int, seed: int) -> list[np.ndarray]:
    """Inputs of some outputs of a layer, channels last: [positions, reduced], one for each group.

    Args:
        node: Conv, Gemm or MatMul.
        x: its input's codes, [batch, channels, ..] or [.., reduced].
        zero: the code of 0, which padding holds.
        seed: of the choice among all positions.
    """
    rng = np.random.default_rng(seed)
    if node.op_type != "Conv":
        rows = x.reshape(-1, x.shape[-1])
        return [rows[rng.permutation(len(rows))[:POSITIONS]]]
    from qtool.runtime.ops.nn import window_pads  # torch, which only this needs

    rank, kernel = x.ndim - 2, attribute(node, "kernel_shape")
    if kernel is None:
        weight = node.inputs[1]
        kernel = tuple(weight.shape.numpy()[2:])  # type: ignore[union-attr]
    steps = attribute(node, "strides") or (1,) * rank
    spread = attribute(node, "dilations") or (1,) * rank
    given, auto = attribute(node, "pads"), attribute(node, "auto_pad", "NOTSET")
    begin, end = window_pads(x.shape[2:], kernel, steps, spread, given, auto)
    sides = [(0, 0), (0, 0), *zip(begin, end, strict=True)]
    wide = np.pad(x, sides, constant_values=zero)
    sizes = [
        (wide.shape[2 + a] - (kernel[a] - 1) * spread[a] - 1) // steps[a] + 1 for a in range(rank)
    ]
    every = int(np.prod([len(x), *sizes]))
    chosen = np.unravel_index(rng.permutation(every)[:POSITIONS], [len(x), *sizes])
    taken = []
    for offset in np.ndindex(*kernel):
        at = [chosen[1 + a] * steps[a] + offset[a] * spread[a] for a in range(rank)]
        taken.append(wide[(chosen[0], slice(None), *at)])  # [positions, channels]
    groups = int(attribute(node, "group", 1))
    stacked = np.stack(taken, 1)  # [positions, kernel, channels]
    parts = np.split(stacked, groups, axis=2)
    return [part.reshape(len(part), -1) for part in parts]
