"""Estimates from gradients: known traces, and divergences of small changes."""

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS
from scipy.stats import spearmanr

from qtool.quant.bit_widths import Bits
from qtool.search.effects import Reference
from qtool.search.gradients import (
    _root_of_curvature,
    fisher_estimates,
    gauss_newton_traces,
    hessian_estimates,
)
from qtool.search.partial_network import PartialNetwork


def signs(count, size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 2, (size,), generator=rng) * 2.0 - 1 for _ in range(count)]


def test_traces_of_a_quadratic_form():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=rng)
    x, y = torch.randn(12, requires_grad=True), torch.randn(12, requires_grad=True)
    # 1/2 |output|^2 has the Hessian root root^T of x, and diag(1 ... 12) of y.
    output = root.T @ x + torch.arange(1.0, 13.0).sqrt() * y
    traces = gauss_newton_traces(output, {"x": x, "y": y}, signs(1000, 12))
    assert traces["x"] == pytest.approx(float((root @ root.T).trace()), rel=0.05)
    # A diagonal needs one probe.
    assert gauss_newton_traces(output, {"y": y}, signs(1, 12))["y"] == pytest.approx(78)


def divergence(z, target, kind):
    if kind == "values":
        return (z - target).square().mean() * len(z) / target.square().mean()
    logs = z.log_softmax(1) if kind == "classes" else z.log()
    goal = target.log_softmax(1) if kind == "classes" else target.log()
    return (goal.exp() * (goal - logs)).sum()


@pytest.mark.parametrize("kind", ["classes", "probabilities", "values"])
def test_the_root_of_the_curvature_is_that_of_the_divergence(kind):
    rng = torch.Generator().manual_seed(0)
    shape = (2, 3, 2) if kind == "values" else (2, 5)
    z = torch.randn(shape, generator=rng)
    z = z.softmax(1) if kind == "probabilities" else z
    hessian = torch.autograd.functional.hessian(lambda x: divergence(x, z, kind), z)
    probes = torch.stack([_root_of_curvature(z, rng).flatten() for _ in range(20000)])
    estimated = probes.T @ probes / len(probes)
    exact = hessian.reshape(z.numel(), -1)
    assert torch.allclose(estimated, exact, atol=0.03 * float(exact.abs().max()))


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
