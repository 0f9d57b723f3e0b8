"""Activations with one scale: the same values as fake_quantize, bit for bit."""

import numpy as np
import pytest
import torch

from qtool.quant.primitives import (
    PerChannel,
    QuantParams,
    QuantSpec,
    fake_quantize,
)
from qtool.simulation.one_scale import SMALL, has_one_scale, rounded


def grid(bits: int, signed: bool, zero_point: int, scale: float = 0.1) -> QuantParams:
    spec = QuantSpec(bits, signed=signed, symmetric=False)
    return QuantParams(spec, np.float32(scale), np.int32(zero_point))


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, SMALL + 3), (0, 4)])
@pytest.mark.parametrize("params", [grid(8, False, 17), grid(4, True, -3), grid(16, False, 30000)])
def test_values_are_those_of_fake_quantize(shape, params):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32) * np.float32(2)
    if x.size:  # half-way between codes, and beyond the range
        x = np.where(rng.random(shape) < 0.3, np.float32(0.05) * np.rint(x * 20), x * 40)
    tensor = torch.from_numpy(np.asarray(x, np.float32))
    before = tensor.clone()
    assert has_one_scale(params, tensor)
    assert torch.equal(rounded(tensor, params), fake_quantize(tensor, params))
    assert torch.equal(tensor, before)


def test_values_with_gradients_and_scales_of_channels_are_left_to_fake_quantize():
    spec = QuantSpec(8, signed=False, symmetric=False, granularity=PerChannel(1))
    channels = QuantParams(spec, np.ones(4, np.float32), np.zeros(4, np.int32))
    assert not has_one_scale(channels, torch.zeros(2, 4))
    assert not has_one_scale(grid(8, False, 0), torch.zeros(2, 4, requires_grad=True))
    assert not has_one_scale(grid(8, False, 0), torch.zeros(2, 4, dtype=torch.float64))
