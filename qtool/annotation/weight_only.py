"""Annotate weight-only quantization: large weights of float ops that the file stores as codes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.annotation.dynamic import is_large
from qtool.graph.queries import dims, is_constant, name_of, weight_axis
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import Granularity, PerBlock, PerChannel, PerTensor
from qtool.targets.target import Target

# Below this many weights the scales and nodes take more of the file than the codes save.
MIN_SIZE = 1024


def add_weight_only(
    nodes: Sequence[ir.Node], target: Target, bits: Bits, plan: QuantPlan
) -> QuantPlan:
    """Store large weights of float ops as codes, where the target and all of their readers can.

    Args:
        nodes: nodes of the main graph.
        target: its ``stores`` and ``ops`` name the inputs that may be codes.
        bits: the requested widths.
        plan: with all sites.

    Returns:
        The plan with ``weight_only`` and the QuantSpecs of these weights.
    """
    axes, widths = _candidates(nodes, target, bits, plan)
    grids, grid_of = dict(plan.grids), dict(plan.grid_of)
    main = {id(n) for n in nodes}
    values = {v.name: v for n in nodes for v in n.inputs if v is not None and v.name in axes}
    names = set()
    for name in axes:
        readers = [use for use in values[name].uses() if use[0].name not in plan.integer_nodes]
        if values[name].is_graph_output() or not all(
            id(node) in main
            and position in _storable_inputs(node, target, bits)
            and bits.of(node).weights is not None
            for node, position in readers
        ):
            continue
        spec = plan.spec(name)
        if spec is None:
            granularity = _granularity(values[name], axes[name], bits)
            grids[name] = replace(target.weights, bits=widths[name], granularity=granularity)
            grid_of[name] = name
        elif not spec.symmetric:
            continue
        names.add(name)
    return replace(plan, grids=grids, grid_of=grid_of, weight_only=frozenset(names))


def _candidates(
    nodes: Sequence[ir.Node], target: Target, bits: Bits, plan: QuantPlan
) -> tuple[dict[str, set[int]], dict[str, int]]:
    """Return the axes of scales, and the bits, that readers in float ask for, by weight name."""
    axes: dict[str, set[int]] = {}
    widths: dict[str, int] = {}
    for node in nodes:
        width = bits.of(node).weights
        if width is None or node.name in plan.integer_nodes:
            continue
        for position, axis in _storable_inputs(node, target, bits).items():
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is None or not is_constant(value) or value.dtype != ir.DataType.FLOAT:
                continue
            shape = dims(value)
            size = np.prod([int(str(d)) for d in shape or ()])
            if shape and (size >= MIN_SIZE or is_large(node, target, bits)):
                name = name_of(value)
                axes.setdefault(name, set()).add(axis % len(shape))
                widths[name] = max(widths.get(name, 0), width)
    return axes, widths


def _storable_inputs(node: ir.Node, target: Target, bits: Bits) -> Mapping[int, int]:
    """Map the inputs of a float op that may be codes to the axis of their scales."""
    stores = target.stores.get(node.op_type, {})
    rule = target.ops.get(node.op_type)
    float_activations = bits.of(node).activations is None and node.domain in ("", "ai.onnx")
    if float_activations and rule is not None and rule.weight is not None:
        return {**stores, rule.weight: weight_axis(node)}
    return stores


def _granularity(value: ir.Value, axes: Collection[int], bits: Bits) -> Granularity:
    """Choose the granularity of a weight-only initializer.

    Args:
        value: the initializer.
        axes: the axes of channels in its readers.
        bits: the requested granularity.
    """
    if len(axes) != 1 or bits.granularity == "tensor":
        return PerTensor()
    axis, shape = next(iter(axes)), dims(value) or ()
    reduced = 1 if axis == 0 else 0
    if bits.granularity == "block" and len(shape) > 1 and int(str(shape[reduced])) > bits.block:
        return PerBlock(reduced, bits.block)
    return PerChannel(axis)
