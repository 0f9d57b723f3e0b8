"""Weights of output elements: known Hessians, mean 1."""

import numpy as np
import pytest
import torch
from contexts import calibrated
from models import BUILDERS

from qtool.ptq.reconstruction.blocks import find_regions
from qtool.ptq.reconstruction.output_weights import (
    WEIGHTINGS,
    fisher,
    least_squares,
    output_gradients,
)
from qtool.ptq.reconstruction.samples import BlockSamples
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation


def test_a_diagonal_hessian_is_recovered():
    diagonal = torch.tensor([4.0, 1.0, 0.0, 0.25])
    changes = [torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    pairs = [(diagonal[:, None, None] * change, change) for change in changes]
    weights = list(least_squares(pairs))
    assert len(weights) == 2 and weights[0].shape == (1, 4, 1, 1)
    expected = diagonal + 0.1 * diagonal.mean()
    torch.testing.assert_close(weights[0].reshape(-1), expected)
    squares = list(fisher(pairs))
    torch.testing.assert_close(squares[1], pairs[1][0].square())


def test_channels_of_sequences_are_last():
    change = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    (weight,) = least_squares([(torch.tensor([1.0, 2.0, 3.0]) * change, change)])
    torch.testing.assert_close(weight.reshape(-1), torch.tensor([1.2, 2.2, 3.2]))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradients_of_the_networks_output(name, tmp_path):
    plan, context = calibrated(
        BUILDERS["residual"](), Bits(weights=4, activations=4), rows=64, folder=tmp_path
    )
    regions = find_regions(context.model.graph, plan)
    simulation = Simulation(context.model, freeze(context.model, plan))
    network = Executor(context.model)
    with BlockSamples(context, 48, 16) as samples:
        samples.enter(regions[0], regions[0].blocks[0], simulation)
        assert not samples.at_output
        batches = list(samples.each(samples.fit))
        pairs = list(output_gradients(network, context.first_output, simulation, batches))
        exit_name = regions[0].exit
        for batch, (gradient, change) in zip(batches, pairs, strict=True):
            z = batch.target + change
            # The output is no table of scores: squared error, by a finite difference along g.
            unit = gradient / gradient.norm()
            target = network({exit_name: batch.target}, None, ["y"])["y"]
            losses = [
                float(
                    (network({exit_name: z + t * unit}, None, ["y"])["y"] - target).square().sum()
                )
                for t in (-1e-2, 1e-2)
            ]
            assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.02)
        weights = samples.weights(WEIGHTINGS[name](iter(pairs)))
        means = [float(weights(k).mean()) for k in samples.fit]
        assert np.mean(means) == pytest.approx(1, rel=1e-4)
