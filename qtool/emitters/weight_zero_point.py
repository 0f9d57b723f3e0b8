"""Shift weight codes and their zero point by one: equal values, but other, faster kernels."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, macs, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.targets.target import Target, WeightZeroPoint


def shift_weight_codes(graph: ir.Graph, plan: QuantPlan, target: Target) -> dict[str, int]:
    """Return the shift of codes and zero point for weights on which the target's kernels gain.

    Weights that several layers share are shifted when all of them gain.

    Args:
        graph: the float graph, with shapes.
        plan: frozen.
        target: its ``weight_zero_point`` is the shift, and the least size of such a convolution.

    Returns:
        Initializer name -> shift.
    """
    rule = target.weight_zero_point
    if rule is None:
        return {}
    nodes, gaining = nodes_by_name(graph), dict[str, bool]()
    for site in plan.sites.values():
        if site.weight is not None:
            gains = _gains(nodes[site.name], site, plan, rule)
            gaining[site.weight] = gaining.get(site.weight, True) and gains
    return {name: rule.value for name, all_gain in gaining.items() if all_gain}


def _gains(node: ir.Node, site: Site, plan: QuantPlan, rule: WeightZeroPoint) -> bool:
    """Return True when a site's convolution is large enough and its codes stay in int8."""
    weight = site.weight or ""
    codes, params, x = plan.codes[weight], plan.params(weight), plan.spec(site.inputs[0])
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
        and x is not None
        and x.bits <= 8
    )
