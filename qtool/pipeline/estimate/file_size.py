"""Estimate the bytes of the quantized file from a plan without grids.

The emitter writes the plan with grids and codes of the right shape and no content. Codes are pages
of zeros that the system never has to provide, as nobody reads them: packed forms are counted
instead of packed. So large weights cost nothing.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.emitters import emit_model
from qtool.emitters.packing import packed_size
from qtool.errors import UnsupportedError
from qtool.graph.queries import by_name, is_constant, nodes_by_name
from qtool.quant.freeze import bias_params
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import Codebook, PerTensor, QuantParams, QuantSpec, params_from_range
from qtool.recipe.model import Recipe
from qtool.targets.target import Target
from qtool.verification.file_size import file_parts
from qtool.weights.grids import scheme_for
from qtool.weights.grouping import scale_shape
from qtool.weights.scheme import WeightScheme

# Weights that a scheme is tried on, to learn the number of its levels.
TRIED = 1 << 12
# Bytes of a node that unpacks codes without its names, and how often it names the weight.
NODE_BYTES, NAMES = 90, 3
# Larger code books are learned, so each weight has its own.
FIXED_LEVELS = 3
CLIPS = {"Relu", "Clip"}


def estimate_file_bytes(
    recipe: Recipe, model: ir.Model, plan: QuantPlan, target: Target, scheme: WeightScheme | None
) -> int | None:
    """Return the bytes of the file that a plan becomes; None where the format cannot hold it.

    Args:
        recipe: names the format.
        model: the rewritten graph.
        plan: annotated, without grids.
        target: whose packed forms are used.
        scheme: of weights; None: equal steps.
    """
    filled = _filled(model, plan, scheme)
    codes_only = replace(target, packing=tuple(f for f in target.packing if f == "scales"))
    form = recipe.output.format or "qdq"
    try:
        emitted, _, _ = emit_model(model, filled, codes_only, form, recipe.output.io)
    except UnsupportedError:
        return None
    total = file_parts(emitted)[0].total
    return total if form == "qonnx" else total - _saved(filled, target)


def _saved(plan: QuantPlan, target: Target) -> int:
    """Return the bytes that packing saves over the containers."""
    saved = 0
    tables: dict[tuple, int] = {}
    for name, codes in plan.codes.items():
        params = plan.params(name)
        if params is not None and params.spec.bits <= 16:
            size = packed_size(codes, params, target.packing)
            saved += codes.nbytes - size.codes - size.nodes * (NODE_BYTES + NAMES * len(name))
            learned = isinstance(params, Codebook) and len(params.levels) > FIXED_LEVELS
            tables |= {(key, name if learned else ""): n for key, n in size.tables.items()}
    return saved - sum(tables.values())


def _filled(model: ir.Model, plan: QuantPlan, scheme: WeightScheme | None) -> QuantPlan:
    """Return the plan with grids and codes of the right shape and no content."""
    values = by_name(model.graph)
    clipped = {site.output for site in plan.sites.values() if {*_ops(model, site)} & CLIPS}
    grids, codes = dict(plan.grids), dict(plan.codes)
    weights = plan.weight_only.union(
        *({site.weight} for site in plan.sites.values() if site.weight is not None),
        *(site.weights for site in plan.dynamic.values()),
    )
    biases = {site.bias: site for site in plan.sites.values() if site.bias is not None}
    for name, grid in plan.grid_of.items():
        spec, constant = grids[grid], is_constant(values[name])
        if name in biases:
            continue
        if isinstance(spec, QuantSpec):
            low = 0.0 if name in clipped else -1.0
            grids[grid] = (
                _weight_grid(values[name], spec, scheme)
                if name in weights
                else params_from_range(low, 1.0, spec)
            )
        if constant:
            codes[name] = _zeros(values[name], grids[grid])
    for name, site in biases.items():
        grids[name] = bias_params(plan, grids, site)
        codes[name] = _zeros(values[name], grids[name])
    return replace(plan, grids=grids, codes=codes)


def _ops(model: ir.Model, site: Site) -> tuple[str, ...]:
    nodes = nodes_by_name(model.graph)
    return tuple(nodes[name].op_type for name in site.nodes)


def _weight_grid(value: ir.Value, spec: QuantSpec, scheme: WeightScheme | None) -> QuantParams:
    """Return a grid of the form that the scheme gives, its scales all one."""
    array = np.asarray(value.const_value)
    few = array.reshape(-1)[:TRIED].astype(np.float32)
    tried, _ = scheme_for(spec.bits, scheme)(few, replace(spec, granularity=PerTensor()))
    shape = scale_shape(array, spec)
    one = np.broadcast_to(np.float32(1), shape)
    return replace(tried, spec=spec, scale=one, zero_point=np.zeros(shape, np.int32))


def _zeros(value: ir.Value, params: QuantSpec | QuantParams) -> np.ndarray:
    """Return zeros in the container and shape of the codes; nobody reads them."""
    return np.zeros(() if value.shape is None else value.shape.numpy(), params.container)
