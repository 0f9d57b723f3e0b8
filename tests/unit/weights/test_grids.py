"""Grids of weights that a step replaced: every reader sees the new array, not the model's own."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from models import cpu, two_convs

from qtool.annotation.annotator import annotate
from qtool.errors import DataError
from qtool.graph.queries import constant
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan
from qtool.weights import KMeans
from qtool.weights.grids import weight_grids


def annotated(bits: Bits | None = None) -> tuple[ir.Model, QuantPlan]:
    model = two_convs().model()
    return model, annotate(model, cpu(), bits or Bits())


def test_the_grid_is_that_of_the_weights_that_replace_the_initializer():
    model, plan = annotated()
    weight = constant(model.graph.initializers["w"])
    replaced = replace(plan, weight_overrides={"w": 4 * weight})
    np.testing.assert_allclose(
        weight_grids(model, replaced).qparams("w").scale,
        4 * weight_grids(model, plan).qparams("w").scale,
        rtol=1e-6,
    )


def test_the_codes_are_those_of_the_weights_that_replace_the_initializer():
    model, plan = annotated(Bits(4))
    weight = constant(model.graph.initializers["w"])
    replaced = replace(plan, weight_overrides={"w": -weight})
    codes = [weight_grids(model, p, KMeans()).codes["w"] for p in (plan, replaced)]
    np.testing.assert_array_equal(codes[0], -codes[1])


@pytest.mark.parametrize("name", ["w", "b"])
def test_only_the_arrays_in_use_must_be_finite(name):
    model, plan = annotated()
    value = model.graph.initializers[name]
    good = constant(value)
    bad = np.full_like(good, np.nan)
    with pytest.raises(DataError, match=f'"{name}" of node'):
        weight_grids(model, replace(plan, weight_overrides={name: bad}))
    value.const_value = ir.tensor(bad)
    with pytest.raises(DataError, match=f'"{name}" of node'):
        weight_grids(model, plan)
    weight_grids(model, replace(plan, weight_overrides={name: good}))
