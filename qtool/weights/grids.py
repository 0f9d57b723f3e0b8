"""Compute the grids and codes of weights."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.errors import DataError
from qtool.graph.queries import by_name
from qtool.progress import Progress, silent
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantSpec
from qtool.weights import SCHEMES
from qtool.weights.scheme import WeightScheme

# Weights from which computing their grids takes long enough to show progress.
LONG = 1 << 24


def weight_grids(
    model: ir.Model,
    plan: QuantPlan,
    scheme: WeightScheme | None = None,
    progress: Progress = silent,
) -> QuantPlan:
    """Compute the grids of all weights, and codes where the scheme sets them.

    Args:
        model: the rewritten graph.
        plan: annotated; weights that already have QuantParams keep them.
        scheme: for weights of 2 bits and more; uniform by default. One bit is always binary;
            8 bits and more are uniform where the scheme is for fewer.
        progress: receives the number of weights done, where there are more than LONG.

    Returns:
        The plan with these grids and codes.

    Raises:
        DataError: a weight or bias is NaN or infinite (names the initializer).
    """
    values = by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    _check_biases(values, plan)
    names = {s.weight: s.name for s in plan.sites.values() if s.weight is not None}
    names.update({w: site.name for site in plan.dynamic.values() for w in site.weights})
    readers = {**dict.fromkeys(sorted(plan.weight_only), "a float op"), **names}
    open_specs = {k: spec for k in readers if isinstance(spec := grids.get(k), QuantSpec)}
    total = sum(_size(values[name]) for name in open_specs)
    done = 0
    for name, spec in open_specs.items():
        reader = readers[name]
        array = plan.weight(name, values[name])
        # Only integer kernels need int8: codes that are dequantized at load may be wider.
        level_bits = 8 if name in names else 16
        try:
            if not np.isfinite(array).all():
                raise ValueError("it holds NaN or infinite numbers")
            grids[name], rounded = scheme_for(spec.bits, scheme)(array, spec, level_bits)
        except ValueError as error:
            raise DataError(
                f'the weights "{name}" of node "{reader}": {error}; train or export the model again'
            ) from error
        if rounded is not None:
            codes[name] = rounded
        done += array.size
        if total > LONG:
            progress("weights", done, total)
    return replace(plan, grids=grids, codes=codes)


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size


def scheme_for(bits: int, requested: WeightScheme | None) -> WeightScheme:
    """Return the scheme of weights of ``bits`` bits."""
    if bits == 1:  # no other scheme has two values
        return next(entry() for entry in SCHEMES.values() if entry.fixed_bits == 1)
    if requested is None or (bits >= 8 and requested.low_bit_only):
        return SCHEMES["uniform"]()
    return requested


def _check_biases(values: Mapping[str, ir.Value], plan: QuantPlan) -> None:
    for site in plan.sites.values():
        if site.bias is None:
            continue
        if not np.isfinite(plan.weight(site.bias, values[site.bias])).all():
            raise DataError(
                f'the bias "{site.bias}" of node "{site.name}" holds NaN or infinity; '
                "train or export the model again"
            )
