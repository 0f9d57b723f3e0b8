"""Weights stored one code lower, with a zero point that says so: the same grid, other kernels."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, macs, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.targets.target import Target, WeightZeroPoint


def shift_weight_codes(graph: ir.Graph, plan: QuantPlan, target: Target) -> dict[str, int]:
    """Initializer -> what is added to its codes and its zero point, where the target asks for it.

    Weights that several layers share are moved when all of them ask.

    Args:
        graph: float, with shapes.
        plan: frozen.
        target: says from which size on a convolution gains.
    """
    rule = target.weight_zero_point
    if rule is None:
        return {}
    nodes, asked = nodes_by_name(graph), dict[str, bool]()
    for site in plan.sites.values():
        if site.weight is not None:
            gains = _gains(nodes[site.name], site, plan, rule)
            asked[site.weight] = asked.get(site.weight, True) and gains
    return {name: rule.value for name, all_ask in asked.items() if all_ask}


def _gains(node: ir.Node, site: Site, plan: QuantPlan, rule: WeightZeroPoint) -> bool:
    weight = site.weight or ""
    codes, params, read = plan.codes[weight], plan.params(weight), plan.spec(site.inputs[0])
    return (
        site.op == "Conv"
        and attribute(node, "group", 1) == 1
        and int(np.prod(codes.shape[1:])) >= rule.min_k
        and macs(node) >= rule.min_macs
        and weight not in plan.weight_only
        and params is not None
        and params.container == np.int8
        and not params.zero_point.any()
        and int(codes.min(initial=0)) + rule.value >= -128
        and read is not None
        and read.bits <= 8
    )
