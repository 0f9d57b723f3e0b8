"""Estimates from gradients: known traces, and divergences of small changes."""

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS
from scipy.stats import spearmanr

from qtool.quant.bit_widths import Bits
from qtool.search.effects import Reference
from qtool.search.gradients import fisher_estimates, hessian_estimates, hutchinson_traces
from qtool.search.partial_network import PartialNetwork


def test_traces_of_a_quadratic_form():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=rng)
    a, b = root @ root.T, torch.diag(torch.arange(1.0, 6.0))
    x, y = torch.randn(12, requires_grad=True), torch.randn(5, requires_grad=True)
    loss = 0.5 * (x @ a @ x) + 0.5 * (y @ b @ y) + x.sum() * y.sum()
    traces = hutchinson_traces(loss, {"x": x, "y": y}, 1000, rng)
    assert traces["x"] == pytest.approx(float(a.trace()), rel=0.05)
    assert traces["y"] == pytest.approx(15, rel=0.2)  # the mixed term adds noise


def test_a_diagonal_needs_one_probe():
    b, y = torch.diag(torch.arange(1.0, 6.0)), torch.randn(5, requires_grad=True)
    traces = hutchinson_traces(0.5 * (y @ b @ y), {"y": y}, 1, torch.Generator().manual_seed(1))
    assert traces["y"] == pytest.approx(15)


@pytest.mark.parametrize("name", ["residual", "transformer_mlp"])
def test_estimates_rank_sites_as_the_divergence_does(name):
    plan, context = calibrated(BUILDERS[name](), Bits(weights=8), rows=32)
    network, data = PartialNetwork(context, plan), context.calibration
    reference = Reference(context, data)
    weighted = [unit for unit in network.units if unit.weights]

    def true(unit, part):
        outputs = network.run(context, data, lambda u: part if u == unit else None)
        return reference.effect(outputs).kl

    fisher, hessian = fisher_estimates(context, plan, data), hessian_estimates(context, plan, data)
    both = [true(unit, "both") for unit in weighted]
    ratios = np.array([fisher[unit.name] for unit in weighted]) / both
    assert np.all((ratios > 0.02) & (ratios < 50))
    weights = [true(unit, "weights") for unit in weighted]
    estimated = [hessian[unit.name] for unit in weighted]
    assert np.all(np.array(estimated) > 0)
    if len(weighted) > 2:
        assert spearmanr(both, [fisher[u.name] for u in weighted]).statistic > 0
        assert spearmanr(weights, estimated).statistic > 0
