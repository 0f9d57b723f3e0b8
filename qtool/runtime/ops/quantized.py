"""Quantized operators: quantize, dequantize, and products of codes."""

import torch

from qtool.runtime.ops.nn import Axes, conv
from qtool.runtime.ops.shape import to_float8
from qtool.runtime.tensors import DTYPES, NARROW_INTS, Op, T, Unhandled

# ONNX's numbers of the 8-bit float types with a sign; see DTYPES.
_FLOAT8 = {17, 18, 19, 20}


def aligned(x: T, param: T, axis: int, block_size: int = 0) -> T:
    """Reshape a scale or zero point so that it broadcasts against ``x``."""
    if param.numel() == 1:
        return param.reshape(())
    axis %= x.dim()
    if (param.dim() == 1 and x.dim() != 1) or param.dim() < x.dim():
        return param.reshape([-1 if i == axis else 1 for i in range(x.dim())])
    if block_size:
        return param.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    return param


def _limits(kind: int) -> tuple[int, int]:
    if kind in NARROW_INTS:
        bits, signed = NARROW_INTS[kind]
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    info = torch.iinfo(DTYPES[kind])
    return info.min, info.max


_KINDS = {dtype: kind for kind, dtype in reversed(DTYPES.items())}


def quantize_linear(
    x: T,
    scale: T,
    zero: T | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> T:
    """Compute saturate(round_half_even(x / scale) + zero)."""
    # 2: uint8, ONNX's default; 23, 24, 27, 28: 4-, 6- and power-of-two 8-bit floats.
    kind = output_dtype or (2 if zero is None else _KINDS[zero.dtype])
    if kind not in DTYPES or kind in (23, 24, 27, 28):
        raise Unhandled(f"codes of ONNX type {kind}")
    steps = aligned(x, scale, axis, block_size)
    if precision or x.dtype != steps.dtype:
        wide = DTYPES[precision] if precision else torch.float32
        x, steps = x.to(wide), steps.to(wide)
    y = x / steps
    if kind in _FLOAT8:
        return to_float8(y, DTYPES[kind], saturate)
    y = y.round()
    if zero is not None:
        y = y + aligned(x, zero, axis, block_size).to(y.dtype)
    return y.clamp(*_limits(kind)).to(torch.int32).to(DTYPES[kind])


def dequantize_linear(
    x: T,
    scale: T,
    zero: T | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> T:
    """Compute (codes - zero) * scale."""
    steps = aligned(x, scale, axis, block_size)
    if zero is not None and not x.is_floating_point():
        codes = x.to(torch.int32) - aligned(x, zero, axis, block_size).to(torch.int32)
    else:
        codes = x
    y = codes.to(steps.dtype) * steps
    return y.to(DTYPES[output_dtype]) if output_dtype else y


def dynamic_quantize_linear(x: T) -> tuple[T, T, T]:
    """Quantize to uint8 on the range of ``x``; return codes, scale and zero point.

    The range includes zero: low = min(x, 0), high = max(x, 0), scale = (high - low) / 255,
    zero = round(-low / scale).

    Source: ONNX operator DynamicQuantizeLinear.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round().clamp(0, 255)
    codes = ((x / scale).round() + zero).clamp(0, 255)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(codes: T, zero: T | None, axis: int) -> T:
    """Subtract the zero point in float64, where sums of products of codes are exact."""
    wide = codes.double()
    if zero is None:
        return wide
    if zero.dim() >= 2:
        return wide - zero.double()
    return wide - aligned(codes, zero, axis).double()


def conv_integer(
    x: T,
    w: T,
    x_zero: T | None = None,
    w_zero: T | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Axes = None,
    group: int = 1,
    kernel_shape: Axes = None,
    pads: Axes = None,
    strides: Axes = None,
) -> T:
    """Convolve codes to int32 sums."""
    sums = conv(
        _centred(x, x_zero, 1),
        _centred(w, w_zero, 0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return sums.to(torch.int32)


def matmul_integer(a: T, b: T, a_zero: T | None = None, b_zero: T | None = None) -> T:
    """Multiply matrices of codes to int32; zero points are per row of A, per column of B."""
    rows = -2 if a.dim() > 1 else -1
    return torch.matmul(_centred(a, a_zero, rows), _centred(b, b_zero, -1)).to(torch.int32)


def _requantized(sums: T, multiplier: T, zero: T) -> T:
    kind = _KINDS[zero.dtype]
    # MlasRequantizeOutput: one float32 product, rounded half to even before the zero point.
    y = (sums.float() * multiplier).round() + zero.float()
    return y.clamp(*_limits(kind)).to(torch.int32).to(zero.dtype)


def qlinear_conv(
    x: T,
    x_scale: T,
    x_zero: T,
    w: T,
    w_scale: T,
    w_zero: T,
    y_scale: T,
    y_zero: T,
    b: T | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Axes = None,
    group: int = 1,
    kernel_shape: Axes = None,
    pads: Axes = None,
    strides: Axes = None,
) -> T:
    """Convolve codes: exact sums, then one float32 multiplier per channel."""
    sums = conv(
        _centred(x, x_zero, 1),
        _centred(w, w_zero, 0),
        None if b is None else b.double(),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    multiplier = (x_scale.reshape(()) * w_scale / y_scale.reshape(())).float()
    return _requantized(sums, aligned(sums, multiplier, 1), y_zero.reshape(()))


def qlinear_matmul(
    a: T, a_scale: T, a_zero: T, b: T, b_scale: T, b_zero: T, y_scale: T, y_zero: T
) -> T:
    """Multiply matrices of codes and requantize the sums."""
    sums = matmul_integer(a, b, a_zero, b_zero)
    rows = -2 if a.dim() > 1 else -1
    left = aligned(sums, a_scale, rows) if a_scale.dim() < 2 else a_scale
    right = aligned(sums, b_scale, -1) if b_scale.dim() < 2 else b_scale
    multiplier = left.float() * right.float() / y_scale.float().reshape(())
    return _requantized(sums, multiplier, y_zero.reshape(()))


TABLE: dict[str, Op] = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
