"""Look-ups in a plan: grids that must exist, and weights that a step replaced."""

import numpy as np
import onnx_ir as ir
import pytest

from qtool.graph.edit import add_initializer
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, QuantSpec

SPEC = QuantSpec(8, signed=False, symmetric=False)


def test_qparams_returns_the_grid_and_names_a_value_without_one():
    params = QuantParams(SPEC, np.array(0.5, np.float32), np.array(3, np.int32))
    plan = QuantPlan(grid_of={"x": "g", "y": "h"}, grids={"g": params, "h": SPEC})
    assert plan.qparams("x") is params is plan.params("x")
    for name in ("y", "z"):  # no scale yet; no grid at all
        assert plan.params(name) is None
        with pytest.raises(AssertionError, match=f"{name} has no grid"):
            plan.qparams(name)


def test_weight_returns_the_override_before_the_initializer():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    w = add_initializer(graph, "w", np.ones(3, np.float32))
    replaced = np.zeros(3, np.float32)
    assert QuantPlan(weight_overrides={"w": replaced}).weight("w", w) is replaced
    np.testing.assert_array_equal(QuantPlan().weight("w", w), np.ones(3))
    with pytest.raises(AssertionError, match="v has no data"):
        QuantPlan().weight("v", ir.val("v"))
