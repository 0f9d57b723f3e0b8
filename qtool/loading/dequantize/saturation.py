"""Saturation of quantized values, written as Relu, Clip, Min and Max of the float values.

A quantized file computes the saturation of its integer types, so the float graph must compute it
too. Converters rely on it: they drop a Relu where the zero point is the smallest code.
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import clip_limits, readers
from qtool.loading.dequantize.affine import Scale, ZeroPoint, code_range, constant_array
from qtool.loading.dequantize.float_graph import FloatGraphBuilder


def saturate(
    builder: FloatGraphBuilder,
    node: ir.Node,
    real: ir.Value,
    scale: Scale,
    zero: ZeroPoint,
    dtype: ir.DataType,
) -> ir.Value:
    """Limit a float value to the range of the type that it is quantized to.

    Args:
        builder: of the float graph.
        node: quantizes the value.
        real: the float value.
        scale: of the quantized value.
        zero: zero point of the quantized value.
        dtype: of the quantized value.

    Returns:
        The limited value, or ``real`` where its range proves that it never saturates.
    """
    if scale.dynamic or isinstance(zero, ir.Value):
        return real  # a scale computed from the value itself covers all of it
    first, last = code_range(dtype)
    step = np.asarray(scale.constant)
    return limit_range(builder, node, real, (first - zero) * step, (last - zero) * step, step)


def limit_range(
    builder: FloatGraphBuilder,
    node: ir.Node,
    real: ir.Value,
    lo: np.ndarray,
    hi: np.ndarray,
    step: np.ndarray,
) -> ir.Value:
    """Limit a float value to [lo, hi] unless its inferred range is inside, to within ``step``.

    Clips that only cut off outliers are collected in ``builder.outlier_clips``.

    Args:
        builder: of the float graph.
        node: reads the limited value.
        real: the float value.
        lo: smallest value, [] or per channel.
        hi: largest value, [] or per channel.
        step: the tolerance, one quantization step.

    Returns:
        The limited value, or ``real``.
    """
    array = constant_array(real)
    if array is not None:
        if np.all(array >= lo - step) and np.all(array <= hi + step):
            return real
        return builder.const(str(real.name), np.clip(array, lo, hi))
    low, high = builder.ranges.of(real)
    try:
        below, above = bool(np.any(low < lo - step)), bool(np.any(high > hi + step))
    except ValueError:  # the limits do not broadcast
        below = above = True
    if not below and not above:
        return real
    made, merged = real.producer(), False
    if (
        made is not None
        and made.op_type in ("Relu", "Clip")
        and made.inputs[0] is not None
        and all(reader is node for reader in readers(real))
    ):
        first, last = clip_limits(made)
        if first is not None and last is not None:
            real, merged = made.inputs[0], True  # one Clip instead of two
            lo, hi = np.maximum(lo, first), np.minimum(hi, last)
            below, above = below or first > -np.inf, above or last < np.inf
    out = _add_limits(builder, node, real, lo if below else None, hi if above else None)
    builder.ranges.limits[out] = np.maximum(lo, low), np.minimum(hi, high)
    # A limit that keeps one sign does the work of a Relu and is never removed.
    as_relu = (below and np.any(lo >= 0)) or (above and np.any(hi <= 0))
    if not merged and not as_relu and (clip := out.producer()) is not None:
        builder.outlier_clips.append(clip)
    return out


def _add_limits(
    builder: FloatGraphBuilder,
    node: ir.Node,
    real: ir.Value,
    lo: np.ndarray | None,
    hi: np.ndarray | None,
) -> ir.Value:
    """Add a Relu, a Clip, or for per-channel limits Max and Min; None means no limit."""
    if hi is None and lo is not None and not np.any(lo):
        return builder.add(node, "Relu", [real], like=real)
    if any(np.size(limit) > 1 for limit in (lo, hi) if limit is not None):
        for op, limit in (("Max", lo), ("Min", hi)):  # a Clip takes scalars only
            if limit is not None:
                real = builder.add(node, op, [real, builder.const("end", limit)], like=real)
        return real
    scalars = [
        None if limit is None else builder.const("end", np.reshape(limit, ())) for limit in (lo, hi)
    ]
    while scalars[-1] is None:
        scalars.pop()
    return builder.add(node, "Clip", [real, *scalars], like=real)
