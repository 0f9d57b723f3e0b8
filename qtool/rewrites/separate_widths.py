"""Separate values for layers that read fewer activation bits than the other readers do."""

from collections.abc import Callable

import onnx_ir as ir

from qtool.graph.queries import nodes_by_name
from qtool.quant.plan import QuantPlan


def separate_widths(
    model: ir.Model, plan: QuantPlan, requested_bits: Callable[[ir.Node], int | None]
) -> int:
    """Insert a LeakyRelu of slope 1 in front of layers that read a value with fewer bits.

    In a residual network the sums read a value with 8 bits and the convolutions with, say, 2. The
    LeakyRelu gives the convolutions a value of their own. Its float function is the identity; on
    ONNX Runtime its integer kernel is one table look-up per byte, which does the requantization
    from the 8-bit grid to the narrow one.

    Args:
        model: the rewritten graph; changed in place.
        plan: the annotation of ``model``, without scales and zero points.
        requested_bits: returns the activation bits of a node, None for float.

    Returns:
        The number of inserted nodes. If it is not 0, ``plan`` is out of date: annotate again.
    """
    nodes = nodes_by_name(model.graph)
    narrow_values: dict[tuple[str, int], ir.Value] = {}
    for site in plan.sites.values():
        node = nodes[site.name]
        bits, source = requested_bits(node), node.inputs[0]
        spec = plan.spec(site.inputs[0]) if site.weight is not None else None
        if spec is None or bits is None or source is None or spec.bits <= bits:
            continue
        key = (site.inputs[0], bits)
        if key not in narrow_values:
            # One node per value and width: readers of the same width share its output.
            narrow_values[key] = _insert_identity(model.graph, node, source, bits)
        node.replace_input_with(node.inputs.index(source), narrow_values[key])
    if narrow_values:
        model.graph.sort()  # a LeakyRelu may come after another of its readers
    return len(narrow_values)


def _insert_identity(graph: ir.Graph, reader: ir.Node, source: ir.Value, bits: int) -> ir.Value:
    """Insert a LeakyRelu of slope 1 in front of ``reader`` and return its output."""
    # LeakyRelu and not Identity: runtimes remove Identity, and with it the requantization.
    node = ir.Node(
        "",
        "LeakyRelu",
        [source],
        [ir.AttrFloat32("alpha", 1.0)],
        name=f"{source.name}/to_{bits}_bits",
    )
    out = node.outputs[0]
    out.name = f"{source.name}_at_{bits}_bits"
    out.type, out.shape = source.type, source.shape
    graph.insert_before(reader, node)
    return out
