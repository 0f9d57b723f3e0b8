"""Pack codes of one to eight bits, and unpack them with standard operators at load.

A runtime that folds constants unpacks once, when it loads the file, and then has the same int8
weights, hence the same integer kernels, as with plain int8 storage. The file holds one of

* the container itself (int8, uint8, int16), also where no other form is smaller;
* ``int4``, ``int2``: ONNX's own narrow types, followed by a Cast;
* ``bytes``: planes of 4, 2 and 1 bits (5 = 4 + 1); every byte is an index into a table of the codes
  it holds, so that unpacking, sign and code book are one Gather; BitwiseOr joins several planes;
* ``base3``: five ternary codes in a byte (3^5 = 243), with a table of the same kind.

Tables of whole bytes were chosen by measurement, on a random ResNet-18 with onnxruntime 1.31: the
runtime keeps every intermediate until all is folded, and the allocator keeps that memory. Shift,
mask and a Gather per code make five to eight intermediates of the size of the weights or of four
times that, tables of bytes two to four: 67 instead of 100 MB after loading at 4 bits, 39 instead of
87 at 1 bit, in two thirds of the load time. The int8 file keeps 35 MB.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from qtool.quant.primitives import Codebook, QuantParams

# Bytes of a node and its names in the file; a small tensor is smaller in a wider form.
NODE = 100

# Largest size of the tables of bytes, as a share of the packed indices.
TABLES = 0.03

# Eight codes fill whole bytes in every plane. An unpacked group is a cube [2, 2, 2], so that planes
# have equal shapes whether 2, 4 or 8 codes share a byte.
GROUP, CUBE = 8, (2, 2, 2)


class Store(Protocol):
    """The methods of an emitter that unpacking uses."""

    def constant(self, name: str, data: np.ndarray | ir.Tensor) -> ir.Value:
        """Add an initializer, or return the one that was added under this name before."""

    def step(self, op: str, inputs: Sequence[ir.Value], out: str, **attributes: Any) -> ir.Value:
        """Add a node; return its output, named ``out`` or after it, without a type."""


def widen(
    store: Store,
    name: str,
    codes: np.ndarray,
    params: QuantParams,
    forms: Sequence[str],
    shift: int = 0,
) -> ir.Value:
    """Store codes in the smallest form; return a value that has them in their container and shape.

    Args:
        store: receives constants and nodes.
        name: name of the initializer; constants and nodes are named after it.
        codes: integers on the grid, of the type the kernels read.
        params: the grid; the ``bits`` of a Codebook are those of an index.
        forms: the forms that the target folds, of int4, int2, bytes and base3.
        shift: added to every code, for kernels that need another weight zero point.
    """
    shifted = (codes.astype(np.int32) + shift).astype(codes.dtype) if shift else codes
    levels = params.levels + shift if isinstance(params, Codebook) else None
    width, form = form_of(codes, params, forms, shift)
    if form == "base3" and levels is not None:
        value = _trits(store, name, shifted, levels)
    elif form == "bytes" and levels is not None:
        value = _indices(store, name, shifted, levels, forms)
    elif form == "bytes":
        value = _joined(store, name, shifted, int(width), forms)
    elif form == "container":
        return store.constant(f"{name}_quantized", shifted)
    else:
        narrow = store.constant(f"{name}_packed", _narrow(shifted, int(width)))
        return _cast(store, narrow, f"{name}_quantized", codes.dtype)
    return _shaped(store, name, value, shifted, 5 if form == "base3" else GROUP)


def form_of(
    codes: np.ndarray, params: QuantParams, forms: Sequence[str], shift: int = 0
) -> tuple[float, str]:
    """Choose the form that makes the file smallest.

    Args:
        codes: as in :func:`widen`.
        params: the grid of the codes.
        forms: the forms that the target folds.
        shift: added to every code.

    Returns:
        Bits per code in the file, and one of ``forms`` or ``container``.
    """
    return _cheapest(codes, params, forms, shift)[:2]


@dataclass(frozen=True)
class PackedSize:
    """Bytes of packed codes in the file.

    Attributes:
        codes: bytes of the codes.
        nodes: how many nodes unpack them.
        tables: what a table holds -> its bytes; equal tables are stored once.
    """

    codes: int
    nodes: int
    tables: Mapping[tuple, int]


def packed_size(codes: np.ndarray, params: QuantParams, forms: Sequence[str]) -> PackedSize:
    """Return the bytes of codes in the form that :func:`form_of` chooses, without packing them.

    Args:
        codes: of the right shape and type; their values do not matter.
        params: the grid of the codes.
        forms: the forms that the target folds.
    """
    bits, form, nodes = _cheapest(codes, params, forms, 0)
    tables: dict[tuple, int] = {}
    item = codes.dtype.itemsize
    if isinstance(params, Codebook) and form in ("base3", "bytes"):
        width, levels = index_bits(params.levels), tuple(params.levels.tolist())
        if form == "base3":
            tables = {("base3", levels): 3**5 * 5 * item}
        elif _joins_indices(params.levels, width, codes.size, item):
            tables = {("levels", levels): len(levels) * item, **_plane_tables(width, forms)}
        else:
            (low, _), *top = planes(width)
            tables = {("indices", levels): 256 * (8 // low) * (1 + len(top)) * item}
            tables |= {("flags",): 256 * 8} if top else {}
    elif form == "bytes":
        tables = _plane_tables(int(bits), forms)
    return PackedSize(round(bits / 8 * codes.size), nodes, tables)


def _plane_tables(width: int, forms: Sequence[str]) -> dict[tuple, int]:
    """Return the tables that unpack planes of codes of ``width`` bits."""
    looked_up = [(b, at) for b, at in planes(width) if at > 0 or f"int{b}" not in forms]
    return {("plane", bits, at): 256 * (8 // bits) for bits, at in looked_up}


def _cheapest(
    codes: np.ndarray, params: QuantParams, forms: Sequence[str], shift: int
) -> tuple[float, str, int]:
    """Return bits per code, form and number of nodes of the smallest form."""
    limits = (params.spec.qmin, params.spec.qmax)
    if isinstance(params, Codebook):
        limits = (int(params.levels[0]), int(params.levels[-1]))
    lo, hi = (limit + shift for limit in limits)
    native = bits_of(min(lo, -1) if codes.dtype.kind == "i" else lo, hi)
    width = index_bits(params.levels) if isinstance(params, Codebook) else native
    wide = codes.dtype.itemsize * 8
    # (bits, form, nodes). Of equal sizes the first one wins: it needs less memory at load.
    choices: list[tuple[float, str, int]] = [(wide, "container", 0)]
    choices += [(w, form, 1) for form, w in (("int2", 2), ("int4", 4)) if native <= w]
    if width < 8:
        choices.append((width, "bytes", 3 * len(planes(width))))
    if isinstance(params, Codebook) and len(params.levels) <= 3:
        choices.append((1.6, "base3", 5))
    supported = [c for c in choices if c[1] in ("container", *forms)]
    return min(supported, key=lambda c: c[0] / 8 * codes.size + NODE * c[2])


def index_bits(levels: np.ndarray) -> int:
    """Return the bits of an index into a code book, at least 1."""
    return max(1, (len(levels) - 1).bit_length())


def bits_of(lo: int, hi: int) -> int:
    """Return the bits of the narrowest type that holds both; unsigned when ``lo`` >= 0."""
    return hi.bit_length() if lo >= 0 else max((-lo - 1).bit_length(), hi.bit_length()) + 1


def planes(width: int) -> tuple[tuple[int, int], ...]:
    """Split a width into planes (bits, position), lowest bits first: 7 is 4, 2 and 1."""
    result, at = [], 0
    for bits in (4, 2, 1):
        if width & bits:
            result.append((bits, at))
            at += bits
    return tuple(result)


def pack(codes: np.ndarray, width: int) -> list[np.ndarray]:
    """Pack codes in groups of eight, into one array of bytes per plane.

    Args:
        codes: integers of any shape, negative ones as two's complement of ``width`` bits.
        width: 1..7.

    Returns:
        uint8 [groups * bits] for each of ``planes(width)``; the first code of a byte is in its
        lowest bits, and the last group is filled with 0.
    """
    flat = codes.reshape(-1).astype(np.uint8)  # wraps: two's complement
    flat = np.pad(flat, (0, -len(flat) % GROUP))
    packed = []
    for bits, at in planes(width):
        fields = (flat >> at & (1 << bits) - 1).reshape(-1, 8 // bits)
        packed.append(np.bitwise_or.reduce(fields << np.arange(0, 8, bits, dtype=np.uint8), 1))
    return packed


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Return the fields of bytes, lowest bits first: int16, shape of ``packed`` + [8 / bits]."""
    return (
        packed[..., None].astype(np.int16) >> np.arange(0, 8, bits, dtype=np.int16)
        & (1 << bits) - 1
    )


def pack_trits(indices: np.ndarray) -> np.ndarray:
    """Pack five indices 0, 1, 2 into a byte, i0 + 3 i1 + 9 i2 + ...: uint8 [ceil(n / 5)]."""
    flat = indices.reshape(-1).astype(np.uint8)
    fives = np.pad(flat, (0, -len(flat) % 5)).reshape(-1, 5)
    return (fives * (3 ** np.arange(5)).astype(np.uint8)).sum(1, dtype=np.uint8)


def unpack_trits(packed: np.ndarray) -> np.ndarray:
    """Return the indices in each byte of ``pack_trits``: int64, shape of ``packed`` + [5]."""
    return packed[..., None].astype(np.int64) // 3 ** np.arange(5) % 3


def _narrow(codes: np.ndarray, width: int) -> ir.Tensor:
    kind = ir.DataType[f"{'U' if codes.dtype.kind == 'u' else ''}INT{width}"]
    return ir.Tensor(codes.astype(kind.numpy()), dtype=kind)


def _cast(store: Store, value: ir.Value, out: str, dtype: np.dtype) -> ir.Value:
    to = ir.DataType.from_numpy(dtype).value
    return store.step("Cast", [value], out, to=to)


def _joined(
    store: Store, name: str, codes: np.ndarray, width: int, forms: Sequence[str]
) -> ir.Value:
    """Unpack all planes of codes of ``width`` bits and join them: [groups, 2, 2, 2]."""
    joined: ir.Value | None = None
    for (bits, at), packed in zip(planes(width), pack(codes, width), strict=True):
        out = f"{name}/bits_{at}"
        if at == 0 and f"int{bits}" in forms:
            fields = unpack(packed, bits).reshape(-1, *CUBE).astype(np.uint8)
            part = store.constant(f"{name}_packed_{at}", _narrow(fields, bits))
            part = _cast(store, part, out, codes.dtype)
        else:
            table = unpack(np.arange(256), bits)
            if at + bits == width and codes.dtype.kind == "i":
                table -= (
                    table >> bits - 1
                ) << bits  # two's complement: the highest bit is the sign
            part = _lookup(store, f"{name}_packed_{at}", packed, table << at, out, codes.dtype)
        if joined is not None:
            part = store.step("BitwiseOr", [joined, part], f"{name}/joined")
        joined = part
    if joined is None:
        raise AssertionError(f"{name}: no planes for {width} bits")
    return joined


def _lookup(
    store: Store, name: str, packed: np.ndarray, table: np.ndarray, out: str, dtype: np.dtype
) -> ir.Value:
    """Look every byte up in ``table`` [256, 8 / bits]: [groups, 2, 2, 2]."""
    halves = CUBE[: (8 // table.shape[1]).bit_length() - 1]
    index = store.constant(name, packed.reshape(-1, *halves))
    cubes = table.reshape(-1, *CUBE[len(halves) :])
    return _gather(store, index, cubes, out, dtype)


def _gather(
    store: Store, index: ir.Value, table: np.ndarray, out: str, dtype: np.dtype
) -> ir.Value:
    """Gather rows of a table; equal tables are stored once.

    Indices are cast to int32, the narrowest type that ONNX takes for them.
    """
    array = table.astype(dtype)
    digest = hashlib.blake2b(array.tobytes() + str(array.shape).encode(), digest_size=5).hexdigest()
    casts = [node.outputs[0] for node, _ in index.uses() if node.op_type == "Cast"]
    wide = casts[0] if casts else _cast(store, index, f"{out}_index", np.dtype(np.int32))
    return store.step("Gather", [store.constant(f"codes_{digest}", array), wide], out)


def _indices(
    store: Store, name: str, codes: np.ndarray, levels: np.ndarray, forms: Sequence[str]
) -> ir.Value:
    """Unpack the codes of a code book from packed indices: [groups, 2, 2, 2]."""
    index, width = np.searchsorted(levels, codes).astype(np.uint8), index_bits(levels)
    out, dtype = f"{name}/codes", codes.dtype
    bits = planes(width)[0][0]
    low, *top = pack(index, width)
    if _joins_indices(levels, width, index.size, dtype.itemsize):
        joined = _joined(store, name, index, width, forms)
        return _gather(store, joined, levels, out, dtype)
    filled = np.pad(levels, (0, (1 << width) - len(levels)), mode="edge")
    fields = unpack(np.arange(256), bits)
    value = _lookup(store, f"{name}_packed", low, filled[fields], out, dtype)
    if not top:
        return value
    # The highest bit selects between two tables: half the memory of indices in int32.
    upper = _lookup(store, f"{name}_packed", low, filled[fields + (1 << bits)], out, dtype)
    flags = unpack(np.arange(256), 1)
    chosen = f"{name}/bits_{bits}"
    flag = _lookup(store, f"{name}_packed_{bits}", top[0], flags, chosen, np.dtype(bool))
    return store.step("Where", [flag, upper, value], f"{name}/chosen")


def _joins_indices(levels: np.ndarray, width: int, size: int, item: int) -> bool:
    """Return whether planes of indices are joined first, and looked up in the levels then.

    Args:
        levels: of the code book.
        width: bits of an index.
        size: number of indices.
        item: bytes of a level in the file.
    """
    (bits, _), *others = planes(width)
    # Tables of bytes need the least memory and time at load, but more of the file than the levels.
    tables = 256 * (8 // bits) * (1 + len(others)) * item
    unsupported = len(others) > 0 and (others != [(1, bits)] or item > 1)  # Where has int8
    return unsupported or (len(levels) > 3 and tables > TABLES * size * width / 8)


def _trits(store: Store, name: str, codes: np.ndarray, levels: np.ndarray) -> ir.Value:
    """Unpack the codes of at most three levels from five indices a byte: [bytes, 5]."""
    packed = pack_trits(np.searchsorted(levels, codes))
    table = levels[np.minimum(unpack_trits(np.arange(3**5)), len(levels) - 1)]
    index = store.constant(f"{name}_packed", packed)
    return _gather(store, index, table, f"{name}/codes", codes.dtype)


def _shaped(store: Store, name: str, value: ir.Value, codes: np.ndarray, group: int) -> ir.Value:
    """Reshape unpacked groups to the shape of the codes, without the fill of the last group."""
    if codes.size % group:
        bounds = [store.constant(f"end_{n}", np.array([n])) for n in (0, codes.size)]
        flat = store.constant("shape_flat", np.array([-1]))
        value = store.step("Reshape", [value, flat], f"{name}/flat")
        value = store.step("Slice", [value, *bounds], f"{name}/cut")
    extents = "_".join(map(str, codes.shape))
    shape = store.constant(f"shape_{extents}", np.array(codes.shape, np.int64))
    return store.step("Reshape", [value, shape], f"{name}_quantized")
