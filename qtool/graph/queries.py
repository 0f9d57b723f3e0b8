"""Read-only queries of ``onnx_ir`` graphs, nodes and values."""

import math
import mmap
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir


def name_of(item: ir.Value | ir.Node) -> str:
    """Return the name of a value or node, "" where it has none."""
    return item.name or ""


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer, or None when the value is computed or a graph input."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Return True for an initializer (without loading its data)."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def release_weight_pages(model: ir.Model) -> None:
    """Release the memory of weights mapped from files; the next read maps them again."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for value in model.graph.initializers.values():
        mapped = getattr(value.const_value, "raw", None)
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


def is_float(value: ir.Value | None) -> bool:
    """Return True for a value of type float32, float16, bfloat16 or float64."""
    return value is not None and value.dtype in _FLOATS


_FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
}


def readers(value: ir.Value) -> tuple[ir.Node, ...]:
    """Return the nodes that read the value, each once, bodies of control flow included."""
    seen: dict[int, ir.Node] = {}
    for node, _ in value.uses():
        seen[id(node)] = node
    return tuple(seen.values())


def has_one_use(value: ir.Value) -> bool:
    """Return whether a value is read once, by one node."""
    return len(value.uses()) == 1


def sole_reader(value: ir.Value) -> ir.Node | None:
    """Return the only reader of a value; None for several, none, or a graph output."""
    nodes = readers(value)
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute's Python value (str, int, float, tuple), or ``default`` when absent."""
    attr = node.attributes.get(name)
    if attr is None:
        return default
    value = attr.value
    return tuple(value) if isinstance(value, list | tuple) else value


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions, or None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Return the shape: an int, a symbol's name or None per dimension; None for unknown rank."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def sample_elements(value: ir.Value) -> int:
    """Count the elements of one sample of a value; open sizes count as 1.

    Rows [N * T, K], which linear layers read and write, are T of a sample: those of the Reshape
    that they come from.
    """
    shape = dims(value) or ()
    own = math.prod(d for d in shape[1:] if isinstance(d, int))
    rows = _rows_of_sample(value) if len(shape) == 2 and not isinstance(shape[0], int) else 1
    return own * rows


def computed_elements(graph: ir.Graph) -> int:
    """Count the elements of all values that a graph computes for one sample."""
    return sum(sample_elements(value) for node in graph for value in node.outputs)


def _rows_of_sample(rows: ir.Value) -> int:
    """Return how many rows one sample has; 1 where that is unknown."""
    node = rows.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        operand = node.inputs[0]
        if node.op_type == "Reshape":
            width = (dims(node.outputs[0]) or (None,))[-1]
            shape = dims(operand) or ()
            # The batch is the first axis, or the open one behind it (rows in the order s, n).
            first = shape[:1] if any(not isinstance(d, int) for d in shape[1:2]) else ()
            total = math.prod(d for d in (*first, *shape[1:]) if isinstance(d, int))
            return max(1, total // width) if isinstance(width, int) and width else 1
        if rank(operand) != 2:
            return 1
        node = operand.producer()
    return 1


def clip_limits(node: ir.Node) -> tuple[float | None, float | None]:
    """Return the lower and upper limit of a Relu or Clip; None for one computed at run time."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    limits: list[float | None] = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant(value)
        limits.append(
            default if value is None else None if array is None else float(array.reshape(()))
        )
    return limits[0], limits[1]


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield inputs, initializers and node outputs of the main graph, in that order."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (v for v in node.outputs if v.name)


def by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Map name -> value over the main graph."""
    return {v.name: v for v in all_values(graph) if v.name}


def nodes_by_name(graph: ir.Graph) -> dict[str, ir.Node]:
    """Map name -> node over the main graph (loading gives every node a unique name)."""
    return {n.name: n for n in graph if n.name}


def nested(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the subgraphs of a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return the outer values that a node's subgraphs read, in order of first use."""
    seen: dict[str, ir.Value] = {}
    for graph in nested(node):
        _collect_outer(graph, set(), seen)
    return tuple(seen.values())


def _collect_outer(graph: ir.Graph, local: set[int], seen: dict[str, ir.Value]) -> None:
    """Add the values to ``seen`` that a graph reads but neither it nor its parents define.

    Args:
        graph: a subgraph.
        local: ids of the values that the subgraphs around it define.
        seen: name -> outer value, extended in place.
    """
    local = local | {id(v) for v in graph.inputs} | {id(v) for v in graph.initializers.values()}
    for node in graph:
        local |= {id(v) for v in node.outputs}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.name and id(value) not in local:
                seen.setdefault(value.name, value)
        for inner in nested(node):
            _collect_outer(inner, local, seen)
    for value in graph.outputs:
        if value.name and id(value) not in local:
            seen.setdefault(value.name, value)


WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Their outputs differ from run to run.
RANDOM_OPS = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli"),
)


def producer_behind(value: ir.Value | None, passed: Collection[str]) -> ir.Node | None:
    """Return the node that computes a value, in front of ops of some types; None for an input.

    Args:
        value: where to start.
        passed: op types that are passed, by their first input.
    """
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in passed:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return node


def weight_axis(node: ir.Node) -> int:
    """Return the axis of the output channels in the weight (input 1) of a weighted node."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op_type]


def parameters(graph: ir.Graph) -> int:
    """Count the floating-point numbers in the initializers."""
    return sum(
        int(np.prod(v.const_value.shape.numpy()))
        for v in graph.initializers.values()
        if v.const_value is not None and is_float(v)
    )


def macs(node: ir.Node) -> int:
    """Count multiply-accumulates of a convolution or matrix product per sample; 0 if unknown."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = dims(node.inputs[1])
        # A ConvTranspose applies its kernel at every input position, a Conv at every output one.
        positions = dims(node.outputs[0] if node.op_type == "Conv" else node.inputs[0])
        if weight is None or positions is None:
            return 0
        spatial = [d if isinstance(d, int) else 0 for d in positions[2:]]
        return int(np.prod([*[d for d in weight if isinstance(d, int)], *spatial], dtype=np.int64))
    if node.op_type in ("Gemm", "MatMul"):
        weight = dims(node.inputs[1])
        out = dims(node.outputs[0])
        if weight is None or out is None or not is_constant(node.inputs[1]):
            return 0
        rows = [d if isinstance(d, int) else 1 for d in out[1:-1]]
        return int(np.prod([*[d for d in weight if isinstance(d, int)], *rows], dtype=np.int64))
    return 0
