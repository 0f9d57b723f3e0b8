"""Sums, products and normalizations between linear layers compute on the layers' rows.

Linear layers are Gemm on rows [R, K] (:func:`qtool.rewrites.linear.matmul_to_gemm`), with a Reshape
of [N, S, K] to rows in front and one back behind. Ops that compute each row alone need neither.
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, drop, replace_value
from qtool.graph.queries import attribute, constant, dims, is_constant, rank, readers
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.linear import ELEMENTWISE
from qtool.rewrites.rewrite import IsInteger

NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
SUMS = frozenset({"Add", "Sub", "Mul"})


def keep_rows(model: ir.Model, is_integer: IsInteger) -> int:
    """Move sums, products and normalizations between linear layers from [N, S, K] to rows.

        norm(a + restore(r)) = restore(norm(rows(a) + r))

    The Reshape of a layer's output and that of the next layer's input then cancel. A sum is moved
    where both terms have rows already, so that no Reshape is added; so is a product.
    """
    done = 0
    # A normalization that only layers read gets rows instead of making them: as many Reshapes, and
    # its input, which is a term of the next sum, has rows.
    for node in reversed(list(model.graph)):
        if _can_move(node) and node.op_type not in SUMS and _only_flattened(node.outputs[0]):
            done += _move(node)
    for node in _moving(model.graph):
        done += _move(node)
    if done:
        model.graph.sort()  # rows that exist may be made behind their new reader
        remove_unused(model)
    return done


def _moving(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that move to rows behind a layer, in order."""
    moving: dict[ir.Node, None] = {}
    for node in graph:
        terms = [node.inputs[k] for k in row_terms(node)] if _can_move(node) else []
        rows = [_restored(v) is not None or (v and v.producer() in moving) for v in terms]
        if any(rows) and all(r or _flattened(v) for r, v in zip(rows, terms, strict=True)):
            moving[node] = None
    # At the end of a chain a Reshape comes behind the node; one in front must go for it.
    for node in reversed(moving.copy()):
        out, terms = node.outputs[0], [node.inputs[k] for k in row_terms(node)]
        read = any(reader in moving for reader in readers(out)) or _flattened(out) is not None
        if not read and not any(v and moving.keys() >= {*readers(v)} for v in terms):
            del moving[node]
    return list(moving)


def computes_rows_alone(node: ir.Node) -> bool:
    """Return whether a node computes each row of its result from the same row of its inputs."""
    shape = dims(node.outputs[0]) or ()
    if any(v.name and (readers(v) or v.is_graph_output()) for v in node.outputs[1:]):
        return False
    # Constants of more axes would give the rows as many.
    constants = [dims(v) or () for v in node.inputs if is_constant(v)]
    if any(len(sizes) > 2 or set(sizes[:-1]) - {1} for sizes in constants):
        return False
    if node.op_type in NORMS:
        return attribute(node, "axis", -1) in (-1, len(shape) - 1)
    if node.op_type in SUMS:
        terms = [dims(node.inputs[k]) for k in row_terms(node)]
        return terms == [shape] * len(terms)
    return node.op_type in ELEMENTWISE


def row_terms(node: ir.Node) -> list[int]:
    """Return the positions of the inputs whose rows become rows of the result."""
    if node.op_type not in SUMS:
        return [0]
    return [k for k, value in enumerate(node.inputs) if not is_constant(value)]


def width(value: ir.Value | None) -> int | None:
    """Return the last size of a value, None where it is unknown."""
    size = (dims(value) or (None,))[-1]
    return size if isinstance(size, int) else None


def _keeps_width(node: ir.Node | None) -> bool:
    """Return whether a node is a Reshape to constant sizes that keeps the last one."""
    if node is None or node.op_type != "Reshape" or constant(node.inputs[1]) is None:
        return False
    return width(node.inputs[0]) is not None and width(node.inputs[0]) == width(node.outputs[0])


def _restored(value: ir.Value | None) -> ir.Value | None:
    """Return the rows that a value is a Reshape of, None for another value."""
    node = value.producer() if value is not None else None
    if node is None or not _keeps_width(node) or rank(node.inputs[0]) != 2 or rank(value) == 2:
        return None
    return node.inputs[0]


def _flattenings(value: ir.Value | None) -> list[ir.Node]:
    """Return the Reshapes that make rows of a value."""
    if value is None or rank(value) == 2:
        return []
    return [n for n in readers(value) if _keeps_width(n) and rank(n.outputs[0]) == 2]


def _flattened(value: ir.Value | None) -> ir.Value | None:
    """Return the rows that exist of a value, None where no Reshape makes them."""
    return next((node.outputs[0] for node in _flattenings(value)), None)


def _only_flattened(value: ir.Value) -> bool:
    """Return whether all readers of a value read rows of it."""
    nodes = readers(value)
    return bool(nodes) and len(nodes) == len(_flattenings(value)) and not value.is_graph_output()


def _can_move(node: ir.Node) -> bool:
    """Return whether a node could compute on rows of its inputs, with the same result."""
    shape = dims(node.outputs[0]) if node.outputs else None
    if shape is None or len(shape) < 3 or None in shape or not computes_rows_alone(node):
        return False
    # Reshape can infer one size only.
    return sum(not isinstance(d, int) for d in shape) <= 1 and width(node.inputs[0]) == shape[-1]


def _move(node: ir.Node) -> int:
    """Let a node compute on rows, and restore the result for its other readers; return 1."""
    graph, shape = node.graph, dims(node.outputs[0])
    assert graph is not None and shape is not None
    inputs = list(node.inputs)
    for k in row_terms(node):
        inputs[k] = _restored(inputs[k]) or _flattened(inputs[k]) or _rows(inputs[k], node)
    attributes = {key: a.value for key, a in node.attributes.items() if key != "axis"}
    attributes |= {"axis": -1} if node.op_type in NORMS else {}
    y = add_node(node, node.op_type, inputs, attributes, f"{node.name}/rows", (None, shape[-1]))
    sizes = np.array([d if isinstance(d, int) else -1 for d in shape])
    back = add_constant(graph, f"{node.name}.shape", sizes)
    restored = add_node(node, "Reshape", [y, back], name=f"{node.name}/restore", shape=shape)
    replace_value(node.outputs[0], restored)
    name, producer = node.name, y.producer()
    drop(node)
    if producer is not None:  # the node keeps its name in the report
        producer.name = name
    for flattening in _flattenings(restored):
        replace_value(flattening.outputs[0], y)
        drop(flattening)
    return 1


def _rows(value: ir.Value | None, node: ir.Node) -> ir.Value:
    """Make rows of a value in front of a node."""
    assert value is not None and node.graph is not None
    size = width(value)
    sizes = add_constant(node.graph, f"{node.name}.rows", np.array([-1, size]))
    name = f"{node.name}/flatten"
    return add_node(node, "Reshape", [value, sizes], name=name, shape=(None, size))
