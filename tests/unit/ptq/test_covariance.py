"""Moments are those of all rows; halves add up; rows of a large layer are a sample of all."""

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import Net

from qtool.graph.queries import constant, nodes_by_name
from qtool.ptq.second_order import covariance
from qtool.ptq.second_order.covariance import layer_moments
from qtool.ptq.second_order.im2col import matrix_layer
from qtool.steps.layerwise import LayerwiseRun


def network() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 4, 9, 9), 4, 6, name="first")
    x = net.add("Relu", x)
    x = net.add("Relu", net.conv(x, 6, 6, group=2, name="second"))
    return net.output(net.conv(x, 6, 20, k=1, name="wide", out="y"))  # more outputs than unknowns


def moments_and_rows(net, name, centred=True):
    plan, context = calibrated(net)
    nodes = nodes_by_name(context.model.graph)
    with LayerwiseRun(context, plan, "test") as run:
        for site in run.sites():
            if site.name != name:
                continue
            layer = matrix_layer(nodes[name], constant(nodes[name].inputs[1]))
            every = [
                [layer.rows(x, torch.arange(int(np.prod(layer.positions(x))))) for x in pair]
                for pair in run.inputs(site)
            ]
            rows = [torch.cat(part, 1).double().numpy() for part in zip(*every, strict=True)]
            # The typical power is that of the first batch.
            power, first = (np.square(x).sum((0, 2)) for x in (rows[0], every[0][0].numpy()))
            typical = np.sort(first)[(len(first) - 1) // 2]
            share = np.minimum(1, typical / np.maximum(power, 1e-30))[None, :, None]
            weights = layer.matrices(constant(nodes[name].inputs[1]).astype(np.float64))
            moments = layer_moments(run, site, layer, weights, centred)
            return moments, (*rows, share), weights
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["first", "second", "wide"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_moments_are_those_of_all_rows(name, centred, elements, monkeypatch):
    monkeypatch.setattr(covariance, "PRODUCT_ELEMENTS", elements)
    found, (a, b, share), weights = moments_and_rows(network(), name, centred)
    total = found.total
    assert share.min() < 1
    np.testing.assert_allclose(total.rows, share.sum(), rtol=1e-6)
    np.testing.assert_allclose(total.rows, sum(half.rows for half in found.halves), rtol=1e-12)
    share = share / share.sum()
    means = [(share * x).sum(1) for x in (a, b)]
    np.testing.assert_allclose(total.mean_float, means[0], atol=1e-6)
    np.testing.assert_allclose(total.mean_quantized, means[1], atol=1e-6)
    if centred:
        a, b = (x - mean[:, None] for x, mean in zip((a, b), means, strict=True))
    hessian, cross = ((share * left).swapaxes(1, 2) @ b for left in (b, a))
    np.testing.assert_allclose(total.hessian, hessian, atol=1e-5)
    np.testing.assert_allclose(total.error, weights @ (cross - hessian), atol=1e-5)
    assert np.abs(total.error).max() > 1e-4


def test_a_large_offset_costs_no_digits(monkeypatch):
    net = Net()
    x = net.add("Add", net.input("x", "N", 4, 9, 9), net.const(np.full((1, 4, 1, 1), 3000.0)))
    net.output(net.conv(x, 4, 6, k=1, name="only", out="y"))
    found, (_, b, share), _ = moments_and_rows(net, "only")
    want = np.cov(b[0], rowvar=False, ddof=0, aweights=share[0, :, 0])
    np.testing.assert_allclose(found.total.hessian[0], want, atol=1e-4 * np.abs(want).max())


def test_an_input_that_varies_in_few_samples_has_a_positive_definite_hessian():
    """The first batch has a mean that no later one has: what is left is rounding error."""
    shift, weights = torch.full((1, 1, 9), 3.7), torch.ones(1, 1, 9)
    sums = covariance._Sums(weights, shift)
    for _ in range(40):
        pair = (1e-6 * torch.rand(1, 400, 9), torch.zeros(1, 400, 9))
        batch = covariance._Batch(0, shift, torch.tensor(1.0), (pair,))
        sums.add(covariance._product(weights, batch))
    sums.close()
    np.linalg.cholesky(sums.moments(True).hessian)


def test_rows_of_a_large_layer_are_a_sample(monkeypatch):
    monkeypatch.setattr(covariance, "row_weights", lambda power, _: torch.ones_like(power))
    full, *_ = moments_and_rows(network(), "first")
    monkeypatch.setattr(covariance, "MIN_ROWS", 1000)
    part, *_ = moments_and_rows(network(), "first")
    assert full.total.rows == 48 * 81
    assert 1000 < part.total.rows <= 1440  # 40 for each of 36 unknowns, less in a short batch
    scale = np.abs(full.total.hessian).max()
    assert np.abs(part.total.hessian - full.total.hessian).max() < 0.15 * scale
    monkeypatch.setattr(covariance, "ELEMENTS", 36 * 100)
    bounded, *_ = moments_and_rows(network(), "first")
    assert bounded.total.rows <= 100 * 2  # two batches
