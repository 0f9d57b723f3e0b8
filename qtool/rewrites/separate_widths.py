"""One value, two widths: a layer that reads narrow codes of a value others read finely."""

from collections.abc import Callable

import onnx_ir as ir

from qtool.graph.queries import nodes_by_name
from qtool.quant.plan import QuantPlan


def separate_widths(
    model: ir.Model, plan: QuantPlan, asked: Callable[[ir.Node], int | None]
) -> int:
    """Give such layers a value of their own, made by a LeakyRelu of slope 1, which changes nothing.

    A residual stream is read by sums at 8 bits and by convolutions at, say, 2. On ONNX Runtime the
    LeakyRelu is one look-up per byte: the rounding from one grid to the other, and nothing else.

    Args:
        model: the rewritten graph; changed in place.
        plan: made for it, without grids.
        asked: node -> bits of the activations it wants, None for float.

    Returns:
        How many values were made; then the plan must be made again.
    """
    nodes = nodes_by_name(model.graph)
    made: dict[tuple[str, int], ir.Value] = {}
    for site in plan.sites.values():
        node = nodes[site.name]
        width, source = asked(node), node.inputs[0]
        spec = plan.spec(site.inputs[0]) if site.weight is not None else None
        if spec is None or width is None or source is None or spec.bits <= width:
            continue
        key = (site.inputs[0], width)
        if key not in made:
            narrow = ir.Node(
                "",
                "LeakyRelu",
                [source],
                [ir.AttrFloat32("alpha", 1.0)],
                name=f"{source.name}/to_{width}_bits",
            )
            made[key] = narrow.outputs[0]
            made[key].name = f"{source.name}_at_{width}_bits"
            made[key].type, made[key].shape = source.type, source.shape
            model.graph.insert_before(node, narrow)
        node.replace_input_with(node.inputs.index(source), made[key])
    if made:
        model.graph.sort()
    return len(made)
