"""Grids that start with more bits than requested, and lose them while training."""

import numpy as np
import pytest
import torch
from test_quantizers import EACH_WIDTH, activation_module, weight_module

from qtool.qat.quantizers import QAT_QUANTIZERS
from qtool.qat.quantizers.base import lower_bits
from qtool.qat.quantizers.binary.xnor import ApproxSignGradient
from qtool.qat.quantizers.learned_step import StepGradient, learned_step
from qtool.qat.quantizers.lsq import LSQGradient
from qtool.qat.quantizers.lsq_plus import LSQPlusGradient

EQUAL_STEPS = {"lsq", "lsq_plus", "ste", "faq", "ewgs", "qil", "dorefa", "pact", "sat"}


def test_bits_are_lost_one_after_the_other_in_the_first_half_of_training():
    module = activation_module("lsq", 4, 0)
    finer = []
    for share in (0.0, 0.1, 0.17, 0.3, 0.34, 0.49, 0.5, 1.0):
        lower_bits(module, 3, share)
        finer.append(module.finer)
    assert finer == [8, 8, 4, 4, 2, 2, 1, 1]
    lower_bits(module, 0, 0.0)
    assert module.finer == 1


@EACH_WIDTH
def test_finer_weights_have_the_same_range_and_the_requested_grid_among_them(name, bits):
    module, weight = weight_module(name, bits)
    assert module.refines or bits == 8 or name not in EQUAL_STEPS
    with torch.no_grad():
        module.train()(weight)  # what follows the weights follows them here
        plain = module.eval()(weight)
        lower_bits(module, 2, 0.0)
        torch.testing.assert_close(module(weight), plain)  # in evaluation: the requested bits
        assert module.finer == (4 if module.refines and bits < 8 else 1)
        scale = module.scale.clone().reshape(-1, 1, 1, 1)
        fine = module.train()(weight)
        if module.finer == 1 or name == "sat":  # its scale follows the variance of rounded weights
            return
        assert float(fine.abs().max()) == pytest.approx(float(plain.abs().max()), rel=1e-5)
        steps = 4 * fine / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert ((fine - plain).abs() <= scale * 1.001).all() and not torch.equal(fine, plain)
        lower_bits(module, 2, 0.5)
        torch.testing.assert_close(module(weight), plain)


@pytest.mark.parametrize("name", QAT_QUANTIZERS)
@pytest.mark.parametrize("zero", [0, 2])
def test_finer_activations_have_the_same_range_and_the_requested_grid_among_them(name, zero):
    module = activation_module(name, 2, zero)
    x = torch.linspace(-2, 2, 500)
    with torch.no_grad():
        plain = module.eval()(x)
        lower_bits(module, 2, 0.0)
        torch.testing.assert_close(module(x), plain)
        fine = module.train()(x)
    assert len(plain.unique()) == 4 and len(fine.unique()) == 13
    np.testing.assert_allclose([fine.min(), fine.max()], [plain.min(), plain.max()], rtol=1e-6)
    on_both = [(value - fine).abs().min() for value in plain.unique()]
    assert max(on_both) < 1e-6
    kept = module.freeze()
    assert kept.spec.bits == 2 and float(kept.scale) == pytest.approx(0.3)


@pytest.mark.parametrize("gradient", [StepGradient(), LSQGradient(0.5), LSQPlusGradient(0.5)])
def test_gradients_of_finer_steps_by_finite_differences(gradient):
    """Of the surrogate: the rounding error of the finer grid held still."""
    finer, lo, hi, factor = 4, 0, 7, gradient.factor
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, generator=generator, dtype=torch.float64) * 3
    slope = torch.randn(60, generator=generator, dtype=torch.float64)
    leaves = [v.requires_grad_() for v in (x, torch.tensor([0.7]).double(), torch.tensor([3.0]))]
    y = learned_step(leaves[0], leaves[1], (lo, hi), gradient, leaves[2], finer)
    (y * slope).sum().backward()
    at = x.detach() / 0.7 + 3
    error = (at.clamp(lo, hi) * finer).round() / finer - at.clamp(lo, hi)

    def loss(scale: float, zero: float) -> float:
        v = (x.detach() / scale + zero).clamp(lo, hi) + error
        return float(((v - zero) * scale * slope).sum())

    d, is_lsq = 1e-6, isinstance(gradient, LSQGradient)
    by_scale = (loss(0.7 + d, 3) - loss(0.7 - d, 3)) / (2 * d)
    by_zero = (loss(0.7, 3 + d) - loss(0.7, 3 - d)) / (2 * d)
    learns_zero = isinstance(gradient, LSQPlusGradient)
    assert float(leaves[1].grad) == pytest.approx(is_lsq * factor * by_scale, abs=1e-4)
    assert float(leaves[2].grad) == pytest.approx(learns_zero * factor * by_zero, abs=1e-4)
    inside = (at > lo) & (at < hi)
    torch.testing.assert_close(leaves[0].grad, slope * inside)


def test_the_triangle_of_a_step_is_for_grids_of_two_codes_alone():
    x = torch.tensor([0.25, 0.5, 0.9], requires_grad=True)
    for finer, expected in ((1, [1.0, 2.0, 0.4]), (4, [1.0, 1.0, 1.0])):
        x.grad = None
        y = learned_step(x, torch.ones(1), (0, 1), ApproxSignGradient(), finer=finer)
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.tensor(expected))
