"""Choose the grids and codes of weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.errors import DataError
from qtool.graph.queries import by_name, constant
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantSpec
from qtool.weights import Binary, KMeans, Uniform


def weight_grids(model: ir.Model, plan: QuantPlan, scheme: Any = None) -> QuantPlan:
    """Grids for weights, per tensor, channel or block as their specs ask; codes where they are set.

    Args:
        model: the rewritten graph.
        plan: weights have specs.
        scheme: an entry of SCHEMES with its options, for weights of 2 to 7 bits; Uniform by
            default. One bit is always Binary, 8 and more are always Uniform.

    Raises:
        DataError: a weight or bias is NaN or infinite (names the initializer).
    """
    values = by_name(model.graph)
    grids, codes = dict(plan.grids), dict(plan.codes)
    _refuse_bad_biases(values, plan)
    names = {s.weight: s.name for s in plan.sites.values() if s.weight is not None}
    names.update({w: site.name for site in plan.dynamic.values() for w in site.weights})
    for name, reader in {**dict.fromkeys(sorted(plan.weight_only), "a float op"), **names}.items():
        spec = grids.get(name)
        if not isinstance(spec, QuantSpec):
            continue
        array = constant(values[name])
        if array is None:
            raise AssertionError(f"{name} is a weight without data")
        chosen = (
            Uniform() if spec.bits >= 8 else Binary() if spec.bits == 1 else scheme or Uniform()
        )
        # Codes that become floats at load need not fit the integer kernels.
        wide = {"level_bits": 16} if isinstance(chosen, KMeans) and name not in names else {}
        try:
            if not np.isfinite(array).all():
                raise ValueError("it holds NaN or infinite numbers")
            grids[name], found = chosen(array, spec, **wide)
        except ValueError as error:
            raise DataError(
                f'the weights "{name}" of node "{reader}": {error}; train or export the model again'
            ) from error
        if found is not None:
            codes[name] = found
    return replace(plan, grids=grids, codes=codes)


def _refuse_bad_biases(values: Mapping[str, ir.Value], plan: QuantPlan) -> None:
    for site in plan.sites.values():
        bias = constant(values[site.bias]) if site.bias is not None else None
        if bias is not None and not np.isfinite(bias).all():
            raise DataError(
                f'the bias "{site.bias}" of node "{site.name}" holds NaN or infinity; '
                "train or export the model again"
            )
