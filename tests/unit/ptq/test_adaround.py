"""AdaRound: known answers of one layer, and roundings that end hard."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import Net

from qtool.data.spool import ArraySource
from qtool.ptq import AdaRound
from qtool.ptq.reconstruction import loop
from qtool.ptq.reconstruction.rounding import rectified_sigmoid
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze

FOUR = Bits(weights=4, granularity="tensor")


@pytest.fixture
def ends(monkeypatch):
    """h(V) of every rounding variable at the end of each layer's learning."""
    ends, original = [], loop.learn_block

    def learn(network, *rest):
        original(network, *rest)
        ends.extend(rectified_sigmoid(w.v.detach()).flatten() for w in network.roundings())

    monkeypatch.setattr(loop, "learn_block", learn)
    return ends


def layer(weight):
    net = Net()
    return net.output(net.add("MatMul", net.input("x", "N", len(weight)), net.const(weight)))


def test_the_optimum_of_two_correlated_inputs_is_not_the_nearest_codes(ends):
    """H = [[1, 0.9], [0.9, 1]]: errors of opposite signs cancel."""
    hessian = np.array([[1, 0.9], [0.9, 1]])
    exact = np.array([2.45, 1.3])
    # The second output sets the scale: codes are the weights times 7.
    weight = np.stack([exact, [7, -7]], 1).astype(np.float32) / 7
    plan, context = calibrated(layer(weight), FOUR, rows=256)
    x = np.random.default_rng(0).normal(size=(256, 2))
    x = np.linalg.solve(np.linalg.cholesky(x.T @ x / len(x)), x.T).T  # uncorrelated
    x = (x @ np.linalg.cholesky(hessian).T).astype(np.float32)
    context = replace(
        context, calibration=replace(context.calibration, source=ArraySource({"x": x}))
    )
    codes = {tuple(c): 0.0 for c in itertools.product((2, 3), (1, 2))}
    for candidate in codes:
        error = exact - candidate
        codes[candidate] = float(error @ hessian @ error)
    best = min(codes, key=codes.__getitem__)
    assert best == (3, 1) != tuple(np.round(exact))
    (name,) = (site.weight for site in plan.sites.values())
    assert freeze(context.model, plan).codes[name][:, 0].tolist() == [2, 1]
    result = AdaRound(iterations=500)(plan, context)
    assert result.plan.codes[name][:, 0].tolist() == list(best)
    assert result.rows[0].kept and ends


def test_roundings_are_hard_at_the_end(ends):
    """At least 98 % of all h(V) are 0 or 1, so that freezing changes next to nothing.

    Lambda counts against the squared error of the outputs, whose power is about 1 here.
    """
    weight = np.random.default_rng(1).normal(0, 24**-0.5, (24, 16)).astype(np.float32)
    AdaRound(regularization=0.1, iterations=1500)(*calibrated(layer(weight), FOUR))
    h = torch.cat(ends)
    assert len(h) == weight.size
    assert float(((h == 0) | (h == 1)).float().mean()) >= 0.98
