"""Conversion of tensors between onnx_ir, numpy and torch, without a copy where types allow it.

Types that torch does not compute with are stored in a wider one: 4- and 2-bit integers in int8 or
uint8, 4- and 6-bit floats in float32. ``DTYPES`` is that table, by ONNX's number of a type.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import UnsupportedError

T = torch.Tensor
Op = Callable[..., Any]

# Keys: onnx.TensorProto.DataType. 8 (string) has no torch type.
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
    21: torch.uint8,
    22: torch.int8,
    23: torch.float32,
    24: torch.float8_e8m0fnu,
    25: torch.uint8,
    26: torch.int8,
    27: torch.float32,
    28: torch.float32,
}

# (bits, signed) of the integers that are stored in a wider type.
NARROW_INTS: dict[int, tuple[int, bool]] = {
    21: (4, False),
    22: (4, True),
    25: (2, False),
    26: (2, True),
}

# Types that torch has and numpy has not: the bytes are viewed, as (numpy view, torch type).
_SAME_BYTES: dict[str, tuple[Any, torch.dtype]] = {
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
    "float8_e8m0fnu": (np.uint8, torch.float8_e8m0fnu),
}
_WIDER: dict[str, Any] = {
    "int4": np.int8,
    "int2": np.int8,
    "uint4": np.uint8,
    "uint2": np.uint8,
    "float4_e2m1fn": np.float32,
    "float6_e2m3fn": np.float32,
    "float6_e3m2fn": np.float32,
}


class Unhandled(Exception):
    """An op function does not compute this combination of attributes or types; use the fallback."""


class _Shared:
    """View of a read-only array as writable memory, which torch requires; no operator writes."""

    def __init__(self, array: np.ndarray) -> None:
        self.owner = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def from_numpy(array: np.ndarray) -> T:
    """Convert an array to a torch tensor, sharing memory where torch has the type.

    Raises:
        UnsupportedError: the array holds strings or objects.
    """
    array = np.asarray(array)
    name = array.dtype.name
    if array.dtype.kind in "OSU":
        raise UnsupportedError(f"a tensor holds {name} values; only numbers can be executed")
    if name in _WIDER:
        return torch.from_numpy(array.astype(_WIDER[name]))
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # Torch takes no negative strides, and none that are no multiple of the item size.
    if any(s < 0 or s % max(array.itemsize, 1) for s in array.strides):
        array = np.ascontiguousarray(array).reshape(array.shape)
    view, final = _SAME_BYTES.get(name, (None, None))
    if view is not None:
        array = array.view(view)
    if not array.flags.writeable:
        array = np.asarray(_Shared(array)) if array.size else array.copy()
    tensor = torch.from_numpy(array)
    return tensor if final is None else tensor.view(final)


def from_ir(tensor: ir.TensorProtocol) -> T:
    """Convert a tensor of the model to a torch tensor (memory-mapped data stays mapped)."""
    return from_numpy(tensor.numpy())


def ints(values: Any) -> list[int]:
    """Return the Python ints of a shape: a tensor (new opsets) or an attribute (old)."""
    if isinstance(values, T):
        return [int(v) for v in values.reshape(-1).tolist()]
    return [int(v) for v in values]


def floats(values: Any) -> list[float]:
    """Return the Python floats of a tensor or attribute."""
    if isinstance(values, T):
        return [float(v) for v in values.reshape(-1).tolist()]
    return [float(v) for v in values]


def number(value: Any) -> Any:
    """Return the Python number of a scalar tensor or attribute."""
    return value.item() if isinstance(value, T) else value
