"""Float initializers that a step replaced: the file holds the new array, the model its own."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from models import Net, cpu, feeds_for, frozen_plan, run

from qtool.emitters import emit_qdq
from qtool.emitters.qonnx import emit_qonnx
from qtool.graph.queries import constant
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.plan import QuantPlan
from qtool.simulation.fake_quant import Simulation


def network() -> ir.Model:
    """A convolution in integers, and a Gemm whose weights and bias may stay float."""
    net = Net(21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 6, 6), 3, 8, name="conv"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    w, b = net.weight(5, 8, name="w"), net.weight(5, name="b")
    return net.output(net.add("Gemm", x, w, b, transB=1, out="y", name="head")).model()


def shifted(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    return replace(plan, weight_overrides={"b": constant(model.graph.initializers["b"]) + 1})


@pytest.mark.parametrize(
    "emit", [partial(emit_qdq, target=cpu()), emit_qonnx], ids=["qdq", "qonnx"]
)
def test_a_float_bias_that_was_replaced_is_in_the_file_and_in_the_simulation(emit):
    model = network()
    plan = frozen_plan(model, Bits(layers={"head": FLOAT}))
    feeds, replaced = feeds_for(model), shifted(model, plan)
    own = constant(model.graph.initializers["b"]).copy()
    before, after = (run(emit(model, p), feeds)["y"] for p in (plan, replaced))
    np.testing.assert_allclose(after, before + 1, rtol=1e-5)
    np.testing.assert_array_equal(constant(model.graph.initializers["b"]), own)
    np.testing.assert_allclose(Simulation(model, replaced)(feeds)["y"].numpy(), after, rtol=1e-4)


def test_the_float_bias_of_a_dynamic_site_that_was_replaced_is_in_the_file():
    net = Net(21)
    x, w, b = net.input("x", "N", 64), net.weight(96, 64, name="w"), net.weight(96, name="b")
    net.output(net.add("Gemm", x, w, b, transB=1, out="y", name="head"))
    model = net.model()
    plan = frozen_plan(model, Bits(activations=None, dynamic=True))
    assert plan.dynamic and "b" not in plan.codes
    feeds, replaced = feeds_for(model), shifted(model, plan)
    before, after = (run(emit_qdq(model, p, cpu()), feeds)["y"] for p in (plan, replaced))
    np.testing.assert_allclose(after, before + 1, rtol=1e-5, atol=1e-5)
    simulated = Simulation(model, replaced)(feeds)["y"].numpy()
    np.testing.assert_allclose(simulated, after, rtol=1e-4, atol=1e-4)
