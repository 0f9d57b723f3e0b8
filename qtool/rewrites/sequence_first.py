"""Attention whose heads ONNX Runtime multiplies where the linear layers wrote them.

Queries, keys and values [N, S, H, D] are transposed to [N, H, S, D] in front of the products.
ONNX Runtime's product reads [S, N, H, D] as it is (FusedMatMul, transBatchA and transBatchB), so
where rows lie in the order (s, n), no Transpose is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, drop, replace_value, set_attributes
from qtool.graph.queries import attribute, constant, dims, is_constant, rank, readers, sole_reader
from qtool.rewrites.rewrite import IsInteger
from qtool.rewrites.rows import computes_rows_alone, row_terms, width

SPLIT, SPLIT_TRANSPOSED, HEADS_FIRST = (0, 2, 1, 3), (0, 2, 3, 1), (1, 2, 0, 3)


def sequence_first(model: ir.Model, is_integer: IsInteger) -> int:
    """Order the rows of encoders by (position, sample) instead of (sample, position).

    The Transposes of queries, keys and values change to the one that ONNX Runtime's product does
    itself. Rows are reordered where a connected part of the network begins and ends, by a Transpose
    of [N, S, K]; a part is changed where that are fewer than the Transposes saved.
    """
    done, seen = 0, set[ir.Value]()
    for node in list(model.graph):
        rows = node.inputs[0] if _is_heads(node) else None
        if rows is None or rows in seen:
            continue
        part = _part(rows)
        seen |= part.rows
        if part.gain() > 0:
            _reorder(part)
            done += len(part.heads)
    return done


@dataclass
class _Part:
    """Rows that layers and ops that compute each row alone connect.

    Attributes:
        rows: values [N * S, K].
        one_sample: whether N is 1.
        entries: Reshapes of [N, S, K] to rows.
        joined: Reshapes of [N, S, H, D] to rows, behind a Transpose of heads.
        exits: Reshapes of rows to [N, S, ...].
        heads: Reshapes of rows to [N, S, H, D] that a Transpose reads.
    """

    rows: set[ir.Value] = field(default_factory=set)
    one_sample: bool = False
    entries: list[ir.Node] = field(default_factory=list)
    joined: list[ir.Node] = field(default_factory=list)
    exits: list[ir.Node] = field(default_factory=list)
    heads: list[ir.Node] = field(default_factory=list)

    def gain(self) -> int:
        """Return how many Transposes are saved."""
        added = 0 if self.one_sample else len(self.entries) + len(self.exits)
        return sum(map(_reaches_product, self.heads)) - added


def _is_heads(node: ir.Node) -> bool:
    """Return whether a node splits rows into heads [N, S, H, D] that are then transposed."""
    shape = dims(node.outputs[0]) if node.op_type == "Reshape" else None
    if shape is None or len(shape) != 4 or rank(node.inputs[0]) != 2:
        return False
    transpose = sole_reader(node.outputs[0])
    if transpose is None or transpose.op_type != "Transpose":
        return False
    return attribute(transpose, "perm") in (SPLIT, SPLIT_TRANSPOSED)


def _reaches_product(heads: ir.Node) -> bool:
    """Return whether transposed heads reach a product of two computed values."""
    transpose = sole_reader(heads.outputs[0])
    node = sole_reader(transpose.outputs[0]) if transpose is not None else None
    while node is not None and (
        (node.op_type == "Transpose" and attribute(node, "perm") == (0, 1, 3, 2))
        or (node.op_type in ("Mul", "Div") and any(_is_number(v) for v in node.inputs))
    ):
        node = sole_reader(node.outputs[0])
    return node is not None and node.op_type == "MatMul"


def _is_number(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


def _part(start: ir.Value) -> _Part:
    """Return the part of the network that some rows belong to; empty where it cannot change."""
    part, waiting = _Part(), [start]
    bounds: list[_Bound] = []
    while waiting:
        value = waiting.pop()
        if value in part.rows:
            continue
        part.rows.add(value)
        producer = value.producer()
        if producer is None or value.is_graph_output() or rank(value) != 2:
            return _Part(part.rows)
        for node in (producer, *readers(value)):
            bound = _bound(node, part) if node.op_type == "Reshape" else None
            if bound is None and not _follow(node, value, waiting):
                return _Part(part.rows)
            bounds += [] if bound is None else [bound]
    part.one_sample = any(bound.batch == 1 for bound in bounds)
    return part if _agree(bounds) else _Part(part.rows)


@dataclass(frozen=True)
class _Bound:
    """A value [N, S, ...] that becomes rows, or is made of rows.

    Attributes:
        batch: N, a name or None where it is unknown.
        length: S.
        whole: whether the sizes behind [N, S] are those of one row.
    """

    batch: int | str | None
    length: int | str | None
    whole: bool


def _agree(bounds: Sequence[_Bound]) -> bool:
    """Return whether all rows that are connected have the order (n, s) with one known S.

    Connected rows are equally many, so where one value has N times S rows, all have; a value of
    unknown last sizes is one of them where it has the same N.
    """
    lengths = {bound.length for bound in bounds}
    batches = {bound.batch for bound in bounds if bound.whole} - {None}
    fits = all(bound.whole or bound.batch in batches for bound in bounds)
    return fits and len(lengths) == 1 and isinstance(lengths.pop(), int)


def _bound(node: ir.Node, part: _Part) -> _Bound | None:
    """Add a Reshape from or to rows to a part; return None where it cannot change."""
    x, out = node.inputs[0], node.outputs[0]
    makes_rows = rank(out) == 2
    value, rows = (x, out) if makes_rows else (out, x)
    shape = dims(value)
    if value is None or shape is None or len(shape) < 3 or _sizes(node) is None:
        return None
    if not makes_rows:
        (part.heads if _is_heads(node) else part.exits).append(node)
    elif len(shape) == 3:
        part.entries.append(node)
    else:
        before = value.producer()
        if before is None or sole_reader(value) is not node or before.op_type != "Transpose":
            return None
        if attribute(before, "perm") != SPLIT:
            return None
        part.joined.append(node)
    inner = [d for d in shape[2:] if isinstance(d, int)]
    sized = len(inner) == len(shape) - 2
    if sized and math.prod(inner) != width(rows):
        return None
    return _Bound(shape[0], shape[1], sized)


def _follow(node: ir.Node, value: ir.Value, waiting: list[ir.Value]) -> bool:
    """Follow a layer, or a node that computes each row alone; return False for another node.

    Args:
        node: reads or makes rows.
        value: rows that it reads or makes.
        waiting: other rows of the node are added.
    """
    layer = node.op_type == "Gemm" and all(is_constant(v) for v in node.inputs[1:])
    if attribute(node, "transA", 0) or not (layer or computes_rows_alone(node)):
        return False
    rows = [*(node.inputs[k] for k in row_terms(node)), node.outputs[0]]
    waiting += [v for v in rows if v is not None]
    return value in rows


def _sizes(node: ir.Node) -> list[int] | None:
    """Return the constant sizes of a Reshape, known and positive but for one; None for others."""
    array, shape = constant(node.inputs[1]), dims(node.outputs[0])
    if array is None or shape is None:
        return None
    # A 0 copies a size.
    sizes = [d if isinstance(d, int) else int(a) for a, d in zip(array, shape, strict=True)]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None


def _reorder(part: _Part) -> None:
    """Order the rows of a part by (s, n)."""
    if not part.one_sample:
        for node in part.entries:
            _transpose_entry(node)
        for node in part.joined:
            _transpose_joined(node)
        for node in part.exits:
            _transpose_exit(node)
    for node in part.heads:
        _transpose_heads(node)


def _swapped(value: ir.Value | None) -> tuple[int | str | None, ...]:
    """Return the sizes of a value [N, S, ...] with S in front."""
    batch, length, *inner = dims(value) or (None, None)
    return (length, batch, *inner)


def _set_sizes(node: ir.Node) -> None:
    """Let a Reshape of rows put S first."""
    assert node.graph is not None
    batch, length, *inner = _sizes(node) or (-1, -1)
    sizes = np.array([length, batch, *inner])
    node.replace_input_with(1, add_constant(node.graph, f"{node.name}.sequence_first", sizes))
    node.outputs[0].shape = ir.Shape(_swapped(node.outputs[0]))


def _transpose_entry(node: ir.Node) -> None:
    """Transpose [N, S, K] in front of the Reshape that makes rows of it."""
    x = node.inputs[0]
    name = f"{node.name}/sequence_first"
    y = add_node(node, "Transpose", [x], {"perm": [1, 0, 2]}, name, _swapped(x))
    node.replace_input_with(0, y)


def _transpose_joined(node: ir.Node) -> None:
    """Let the Transpose in front of a Reshape of joined heads put S first."""
    x = node.inputs[0]
    transpose = x.producer() if x is not None else None
    assert x is not None and transpose is not None
    set_attributes(transpose, perm=[2, 0, 1, 3])
    x.shape = ir.Shape(_swapped(x))


def _transpose_exit(node: ir.Node) -> None:
    """Transpose [S, N, ...] behind the Reshape that restores it from rows."""
    out, shape = node.outputs[0], dims(node.outputs[0]) or ()
    x = add_node(node, "Reshape", [*node.inputs], name=f"{node.name}/rows", shape=shape)
    reshape = x.producer()
    assert reshape is not None
    _set_sizes(reshape)
    perm = [1, 0, *range(2, len(shape))]
    y = add_node(node, "Transpose", [x], {"perm": perm}, f"{node.name}/batch_first", shape)
    replace_value(out, y)
    drop(node)


def _transpose_heads(node: ir.Node) -> None:
    """Split rows into [S, N, H, D], and transpose that to [N, H, S, D] or [N, H, D, S]."""
    x = node.outputs[0]
    transpose = sole_reader(x)
    assert transpose is not None
    _set_sizes(node)
    if attribute(transpose, "perm") == SPLIT:
        set_attributes(transpose, perm=list(HEADS_FIRST))
        return
    length, batch, heads, size = dims(x) or (None,) * 4
    name, shape = f"{transpose.name}/heads", (batch, heads, length, size)
    y = add_node(transpose, "Transpose", [x], {"perm": list(HEADS_FIRST)}, name, shape)
    transpose.replace_input_with(0, y)
    set_attributes(transpose, perm=[0, 1, 3, 2])
