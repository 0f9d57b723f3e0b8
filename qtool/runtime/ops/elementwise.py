"""Arithmetic, comparison and logic, element by element."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch

from qtool.runtime.tensors import Op, T, Unhandled, number

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def widened(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``fn`` to compute in int64 for unsigned types that torch only stores."""

    @functools.wraps(fn)
    def call(*tensors: Any, **options: Any) -> Any:
        try:
            return fn(*tensors, **options)
        except NotImplementedError:
            kinds = {t.dtype for t in tensors if isinstance(t, T)} & set(_UNSIGNED)
            if len(kinds) != 1:
                raise
            y = fn(*(t.long() if isinstance(t, T) else t for t in tensors), **options)
            return y.to(kinds.pop()) if y.dtype == torch.int64 else y

    return call


def div(a: T, b: T) -> T:
    """Divide; integer quotients are truncated toward zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(a: T, b: T) -> T:
    """Raise ``a`` to the power ``b``, in the type of ``a``."""
    if a.dtype == b.dtype and a.is_floating_point():
        return torch.pow(a, b)
    if a.is_floating_point():
        return torch.pow(a, b.to(a.dtype))
    return torch.pow(a.double(), b.double()).to(a.dtype)


def mod(a: T, b: T, *, fmod: int = 0) -> T:
    """Compute the remainder: sign of the divisor, or of the dividend where ``fmod`` is set."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def variadic(fn: Callable[[T, T], T]) -> Callable[..., T]:
    """Wrap a function of two inputs to fold over any number of inputs."""

    def call(*tensors: T) -> T:
        return functools.reduce(fn, tensors)

    return call


def mean(*tensors: T) -> T:
    """Compute the mean of the inputs, element by element."""
    return functools.reduce(torch.add, tensors) / len(tensors)


def clip(x: T, min: T | float | None = None, max: T | float | None = None) -> T:
    """Clamp to [min, max]; the limits are inputs (opset 11) or attributes."""
    # Tensors keep the gradient of a learned limit; numbers are faster where there is none.
    if (isinstance(min, T) and min.requires_grad) or (isinstance(max, T) and max.requires_grad):
        low, high = (
            torch.as_tensor(v, dtype=x.dtype) if v is not None else None for v in (min, max)
        )
        return torch.clamp(x, low, high)
    if min is None and max is None:
        return x
    return torch.clamp(x, number(min), number(max))


def where(condition: T, x: T, y: T) -> T:
    """Select ``x`` where the condition holds, else ``y``."""
    return torch.where(condition, x, y)


def sign(x: T) -> T:
    """Return -1, 0 or 1."""
    return torch.sign(x)


def rounded(x: T) -> T:
    """Round to the nearest integer, halves to even."""
    return torch.round(x)


def is_inf(x: T, *, detect_negative: int = 1, detect_positive: int = 1) -> T:
    """Return a mask of the infinities of the selected signs."""
    none = torch.zeros_like(x, dtype=torch.bool)
    low = torch.isneginf(x) if detect_negative else none
    return low | torch.isposinf(x) if detect_positive else low


def bit_shift(x: T, y: T, *, direction: str) -> T:
    """Shift bits LEFT or RIGHT, filling with zeros."""
    shift = operator.lshift if direction == "LEFT" else operator.rshift
    # Torch shifts no wider unsigned type than uint8. A signed view shifted right would copy the
    # top bit, so it serves only where that bit is 0.
    if x.dtype == torch.uint64:
        if direction == "RIGHT" and bool((x.view(torch.int64) < 0).any()):
            raise Unhandled("uint64 above 2**63")
        return shift(x.view(torch.int64), y.view(torch.int64)).view(torch.uint64)
    if x.dtype in _UNSIGNED:
        return shift(x.long(), y.long()).to(x.dtype)
    return shift(x, y)


def not_(x: T) -> T:
    """Negate booleans."""
    return torch.logical_not(x)


TABLE: dict[str, Op] = {
    "Add": widened(torch.add),
    "Sub": widened(torch.sub),
    "Mul": widened(torch.mul),
    "Div": widened(div),
    "Pow": widened(power),
    "Mod": widened(mod),
    "Min": variadic(widened(torch.minimum)),
    "Max": variadic(widened(torch.maximum)),
    "Sum": variadic(torch.add),
    "Mean": mean,
    "Clip": widened(clip),
    "Abs": widened(torch.abs),
    "Neg": torch.neg,
    "Sign": widened(sign),
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": rounded,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Reciprocal": torch.reciprocal,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": not_,
    "Equal": widened(torch.eq),
    "Greater": widened(torch.gt),
    "GreaterOrEqual": widened(torch.ge),
    "Less": widened(torch.lt),
    "LessOrEqual": widened(torch.le),
    "Where": where,
    "IsNaN": torch.isnan,
    "IsInf": is_inf,
    "BitShift": bit_shift,
    "BitwiseAnd": widened(torch.bitwise_and),
    "BitwiseOr": widened(torch.bitwise_or),
    "BitwiseXor": widened(torch.bitwise_xor),
    "BitwiseNot": widened(torch.bitwise_not),
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}
