"""Known answers of AdaRound's functions, and the two roundings."""

import numpy as np
import pytest
import torch

from qtool.ptq.reconstruction.rounding import (
    ROUNDINGS,
    Annealing,
    SoftRounding,
    StraightThroughRounding,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_regularizer,
)
from qtool.quant.primitives import PerChannel, QuantParams, QuantSpec

SPEC = QuantSpec(bits=4, signed=True, symmetric=True, granularity=PerChannel(0))


def grid(channels: int, scale: float = 0.25) -> QuantParams:
    return QuantParams(SPEC, np.full(channels, scale, np.float32), np.zeros(channels, np.int32))


def test_known_answers():
    v = inverse_rectified_sigmoid(torch.tensor(0.25, dtype=torch.float64))
    assert float(v) == pytest.approx(-0.887303, abs=1e-6)
    assert float(rectified_sigmoid(v)) == pytest.approx(0.25)
    for beta, value in ((2.0, 0.75), (20.0, 0.999999)):
        assert float(rounding_regularizer(torch.tensor([0.25]), beta)) == pytest.approx(
            value, abs=1e-6
        )
    ends = torch.tensor([0.0, 1.0])
    assert float(rounding_regularizer(ends, 7.0)) == 0
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(ends)), ends)
    assert rectified_sigmoid(torch.tensor([-9.0, 9.0])).tolist() == [0, 1]


def test_the_exponent_falls_after_the_warm_up():
    annealing = Annealing()
    assert annealing.beta(0.0) is None and annealing.beta(0.199) is None
    assert annealing.beta(0.2) == pytest.approx(20)
    assert annealing.beta(0.6) == pytest.approx(11)
    assert annealing.beta(1.0) == pytest.approx(2)


@pytest.mark.parametrize("beta", [2.0, 11.0])
def test_gradients_are_those_of_finite_differences(beta):
    v = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rectified_sigmoid, v)
    assert torch.autograd.gradcheck(lambda x: rounding_regularizer(rectified_sigmoid(x), beta), v)


def test_soft_rounding_starts_at_the_float_weights_or_at_the_codes():
    exact, codes = torch.tensor([[1.3, -0.6], [3.2, 7.4]]), torch.tensor([[1.0, -1.0], [4.0, 7.0]])
    params = grid(2)
    cold = SoftRounding(exact, codes, params, warm=0.0)
    # 7.4 is beyond the largest code.
    torch.testing.assert_close(cold(), exact.clamp(max=7) * 0.25)
    warm = SoftRounding(exact, codes, params, warm=1.0)
    torch.testing.assert_close(warm(), codes * 0.25)
    for module in (warm, SoftRounding(exact, codes, params, warm=0.6)):
        frozen, frozen_params = module.freeze()
        np.testing.assert_array_equal(frozen, codes.numpy())
        assert frozen.dtype == np.int8
        np.testing.assert_array_equal(frozen_params.scale, params.scale)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_codes_start_as_the_plans_and_stay_on_the_grid(name):
    rng = torch.Generator().manual_seed(0)
    exact = 12 * torch.rand(3, 50, generator=rng) - 6
    codes = (exact + torch.rand(3, 50, generator=rng) - 0.5).round()  # not always the nearest
    module = ROUNDINGS[name](exact, codes, grid(3), 0.8)
    np.testing.assert_array_equal(module.freeze()[0], codes.numpy())
    with torch.no_grad():
        module.v += 40
    assert module.freeze()[0].max() <= 7
    if name == "soft":  # neighbours alone
        assert np.abs(module.freeze()[0] - codes.numpy()).max() <= 1


def test_gradients_of_straight_through_weights_are_the_steps():
    codes = torch.tensor([[1.0, -7.0]])
    module = StraightThroughRounding(codes + 0.2, codes, grid(1), 1.0)
    module().sum().backward()
    # The lowest code is the limit, where clipping passes the gradient.
    assert module.v.grad.tolist() == [[0.25, 0.25]]
    assert float(module.log_gain.grad) == pytest.approx(0.25 * (1 - 7))


def test_gains_change_scales_where_they_are_free():
    codes = torch.ones(2, 3)
    module = StraightThroughRounding(codes, codes, grid(2), 1.0)
    with torch.no_grad():
        module.log_gain += np.log(2)
    np.testing.assert_allclose(module.freeze()[1].scale, [0.5, 0.5], rtol=1e-6)
    torch.testing.assert_close(module(), codes * 0.5)
    power = QuantParams(
        QuantSpec(4, True, True, PerChannel(0), scale_kind="power_of_two"),
        *(grid(2).scale, grid(2).zero_point),
    )
    assert not StraightThroughRounding(codes, codes, power, 1.0).log_gain.requires_grad
