"""Ranges of linear layers' inputs follow the error of the layers' outputs."""

import numpy as np
import pytest
from models import Net, cpu, rewritten

from qtool.annotation.annotator import annotate
from qtool.calibration import CALIBRATORS, MSE, MinMax
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.quant.bit_widths import Bits
from qtool.steps.output_error import widen_by_output


def plan_of(net: Net, rows: np.ndarray):
    """Return (model, plan with MSE grids, statistics) of a network with the input x."""
    model = net.model()
    rewritten(model)
    plan = annotate(model, cpu(), Bits())
    stats = collect(model, observed_values(model, plan), [{"x": rows}], histograms=True, threads=1)
    return model, choose_grids(plan, stats, MSE()), stats


def two_layers(gain: float) -> tuple[Net, np.ndarray]:
    """Rows with one massive element in 4096; ``gain``: weights of its channel."""
    net, rng = Net(), np.random.default_rng(0)
    weight = rng.normal(size=(64, 16)) / 8
    weight[5] *= gain
    net.output(net.add("MatMul", net.input("x", "N", 64), net.const(weight), name="mm", out="y"))
    rows = rng.normal(size=(4096, 64)).astype(np.float32)
    rows[::64, 5] = 60
    return net, rows


def top(plan, name="x") -> float:
    params = plan.params(name)
    return float((params.spec.qmax - params.zero_point) * params.scale)


def clipped(plan, limit: float):
    """Return the plan with the grid of x from -limit to limit."""
    from dataclasses import replace

    from qtool.quant.primitives import params_from_range

    spec = plan.spec("x")
    return replace(plan, grids={**plan.grids, "x": params_from_range(-limit, limit, spec)})


def test_a_massive_element_that_the_output_depends_on_is_covered():
    net, rows = two_layers(gain=1.0)
    model, plan, stats = plan_of(net, rows)
    plan = clipped(plan, 4.0)
    wide = widen_by_output(model, plan, stats, [{"x": rows}], threads=1)
    assert top(plan) == pytest.approx(4, abs=0.1) and top(wide) > 50
    assert any("widened" in note for note in wide.log)


def test_a_massive_element_that_no_output_reads_stays_clipped():
    net, rows = two_layers(gain=0.0)
    model, plan, stats = plan_of(net, rows)
    plan = clipped(plan, 4.0)
    wide = widen_by_output(model, plan, stats, [{"x": rows}], threads=1)
    assert top(wide) == top(plan) and wide.log == plan.log


def test_the_error_of_the_output_is_never_larger():
    for gain in (0.0, 0.1, 1.0, 10.0):
        net, rows = two_layers(gain)
        model, plan, stats = plan_of(net, rows)
        plan = clipped(plan, 4.0)
        wide = widen_by_output(model, plan, stats, [{"x": rows}], threads=1)
        weight = next(n for n in model.graph if n.name == "mm").inputs[1].const_value.numpy()
        before, after = (error(rows, weight, p.params("x")) for p in (plan, wide))
        assert after <= before * (1 + 1e-6)


def error(rows, weight, params) -> float:
    from qtool.quant.primitives import fake_quantize

    return float(np.square((rows - fake_quantize(rows, params)) @ weight).sum())


def test_convolutions_and_full_ranges_are_left():
    net = Net()
    net.output(net.conv(net.input("x", "N", 3, 6, 6), 3, 4, out="y"))
    rows = np.random.default_rng(0).normal(size=(8, 3, 6, 6)).astype(np.float32)
    model, plan, stats = plan_of(net, rows)
    assert widen_by_output(model, plan, stats, [{"x": rows}], threads=1) is plan
    net, rows = two_layers(1.0)
    model, plan, stats = plan_of(net, rows)
    full = choose_grids(annotate(model, cpu(), Bits()), stats, MinMax())
    assert widen_by_output(model, full, stats, [{"x": rows}], threads=1) is full


def test_only_estimators_of_the_squared_error_are_refined():
    refined = [name for name, entry in CALIBRATORS.items() if getattr(entry, "by_output", False)]
    # cross_entropy is mse but for the class scores; auto compares squared errors.
    assert refined == ["mse", "cross_entropy", "auto"]
