"""Questions about a graph. Read-only, no state: every function takes an ``onnx_ir`` object."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initializer, or None when the value is computed or fed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer (without loading its data)."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def release_weight_pages(model: ir.Model) -> None:
    """Give back the memory of weights mapped from files; whoever reads them maps them again."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for value in model.graph.initializers.values():
        mapped = getattr(value.const_value, "raw", None)
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


def is_float(value: ir.Value | None) -> bool:
    """True when the value is known to hold float32, float16, bfloat16 or float64."""
    return value is not None and value.dtype in _FLOATS


_FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
}


def readers(value: ir.Value) -> tuple[ir.Node, ...]:
    """Nodes that read the value, each once, bodies of control flow included."""
    seen: dict[int, ir.Node] = {}
    for node, _ in value.uses():
        seen[id(node)] = node
    return tuple(seen.values())


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, or None when several do, none does, or it is an output."""
    nodes = readers(value)
    return nodes[0] if len(nodes) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's Python value (str, int, float, tuple), or ``default`` when absent."""
    attr = node.attributes.get(name)
    if attr is None:
        return default
    value = attr.value
    return tuple(value) if isinstance(value, list | tuple) else value


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, or None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Shape as ints, symbol names or None per dimension; None when even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def clip_limits(node: ir.Node) -> tuple[float | None, float | None]:
    """Limits of a Relu or Clip; None where a limit is computed at run time."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    found: list[float | None] = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant(value)
        found.append(default if value is None else None if array is None else float(array))
    return found[0], found[1]


def all_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs, initializers and node outputs of the main graph, in that order."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (v for v in node.outputs if v.name)


def by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Name -> value over the main graph."""
    return {v.name: v for v in all_values(graph) if v.name}


def nodes_by_name(graph: ir.Graph) -> dict[str, ir.Node]:
    """Name -> node over the main graph (loading gives every node a unique name)."""
    return {n.name: n for n in graph if n.name}


def nested(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured(node: ir.Node) -> tuple[ir.Value, ...]:
    """Outer values that a node's subgraphs read, in order of first use."""
    seen: dict[str, ir.Value] = {}
    for graph in nested(node):
        _outer(graph, set(), seen)
    return tuple(seen.values())


def _outer(graph: ir.Graph, known: set[int], seen: dict[str, ir.Value]) -> None:
    known = known | {id(v) for v in graph.inputs} | {id(v) for v in graph.initializers.values()}
    for node in graph:
        known |= {id(v) for v in node.outputs}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.name and id(value) not in known:
                seen.setdefault(value.name, value)
        for inner in nested(node):
            _outer(inner, known, seen)
    for value in graph.outputs:
        if value.name and id(value) not in known:
            seen.setdefault(value.name, value)


WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def weight_axis(node: ir.Node) -> int:
    """Axis of the output channels in the weight (input 1) of a weighted node."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op_type]


def parameters(graph: ir.Graph) -> int:
    """How many floating-point numbers the initializers hold."""
    return sum(
        int(np.prod(v.const_value.shape.numpy()))
        for v in graph.initializers.values()
        if v.const_value is not None and is_float(v)
    )


def macs(node: ir.Node) -> int:
    """Multiply-accumulates of a convolution or matrix product for one sample; 0 if unknown."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = dims(node.inputs[1])
        place = dims(node.outputs[0] if node.op_type == "Conv" else node.inputs[0])
        if weight is None or place is None:
            return 0
        spatial = [d if isinstance(d, int) else 0 for d in place[2:]]
        return int(np.prod([*[d for d in weight if isinstance(d, int)], *spatial], dtype=np.int64))
    if node.op_type in ("Gemm", "MatMul"):
        weight = dims(node.inputs[1])
        out = dims(node.outputs[0])
        if weight is None or out is None or not is_constant(node.inputs[1]):
            return 0
        rows = [d if isinstance(d, int) else 1 for d in out[1:-1]]
        return int(np.prod([*[d for d in weight if isinstance(d, int)], *rows], dtype=np.int64))
    return 0
