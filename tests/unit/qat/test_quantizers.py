"""Every entry of the table of quantizers holds to the Protocol, and to what training relies on."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from qtool.qat.quantizers import QAT_QUANTIZERS
from qtool.qat.quantizers.base import ActivationModule, WeightModule
from qtool.qat.quantizers.trainable import trained_widths
from qtool.quant.primitives import (
    Codebook,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
    dequantize,
)
from qtool.weights import SCHEMES
from qtool.weights.grids import scheme_for

ALL = pytest.mark.parametrize("name", QAT_QUANTIZERS)
EACH_WIDTH = pytest.mark.parametrize(
    ("name", "bits"),
    [
        (name, bits)
        for name, entry in QAT_QUANTIZERS.items()
        for bits in [*sorted({1, 2, 4} & trained_widths(entry)), 8]
    ],
)


def weights() -> torch.Tensor:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:, 0, 0, 0] = 0
    return weight


def weight_module(name: str, bits: int) -> tuple[WeightModule, torch.Tensor]:
    spec = QuantSpec(bits, True, True, narrow=True, granularity=PerChannel(0))
    weight = weights()
    if bits == 1:
        return QAT_QUANTIZERS[name]().weight(
            SCHEMES["binary"]()(weight.numpy(), spec)[0], weight
        ), weight
    scale = weight.abs().amax((1, 2, 3)).numpy() / spec.qmax
    params = QuantParams(spec, scale.astype(np.float32), np.zeros(5, np.int32))
    return QAT_QUANTIZERS[name]().weight(params, weight), weight


def activation_module(name: str, bits: int, zero: int) -> ActivationModule:
    params = QuantParams(QuantSpec(bits, False, False), np.float32(0.3), np.int32(zero))
    return QAT_QUANTIZERS[name]().activation(params)


@ALL
def test_an_entry_is_a_frozen_dataclass_that_names_its_paper(name):
    entry = QAT_QUANTIZERS[name]
    assert all(hasattr(entry(), field.name) for field in dataclasses.fields(entry))
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry().gradient_scale = 2.0
    text = inspect.getdoc(entry)
    assert "Source:" in text and "arXiv:" in text
    assert "=" in text.partition("Source:")[0], "its formula"


@EACH_WIDTH
def test_weight_modules_hold_to_the_protocol(name, bits):
    module, weight = weight_module(name, bits)
    assert isinstance(module, nn.Module) and isinstance(module, WeightModule)
    assert {type(getattr(module, k)) for k in ("decays", "rounds_to_nearest", "follows_range")} == {
        bool
    }
    assert module.scale_gradient_factor > 0 and module.params.spec.bits == bits
    leaf = weight.clone().requires_grad_()
    out = module.train()(leaf)
    out.square().sum().backward()
    learned = [leaf, *module.parameters()]
    gradients = [p.grad for p in learned if p.grad is not None]
    assert out.shape == weight.shape and all(g.isfinite().all() for g in gradients)
    # Fixed assignments of weights to centroids leave the weights as they are.
    assert any(g.any() for g in gradients) and (leaf.grad is not None or name == "kmeans")
    module.project()
    module.clip_weight(weight.clone())
    assert module.scale.shape == (5,) and (module.scale > 0).all()


@EACH_WIDTH
def test_frozen_codes_are_the_weights_in_evaluation(name, bits):
    module, weight = weight_module(name, bits)
    with torch.no_grad():
        module.train()(weight)  # what follows the weights follows them here
        codes, params = module.eval().freeze(weight)
        values = dequantize(codes.numpy(), params)
        np.testing.assert_allclose(module(weight).numpy(), values, rtol=1e-5, atol=1e-6)
        nearest = (weight / module.scale.reshape(-1, 1, 1, 1)).round()
        spec = params.spec
        is_nearest = torch.equal(codes, nearest.clamp(spec.qmin, spec.qmax))
    assert is_nearest or not module.rounds_to_nearest
    if isinstance(params, Codebook):
        assert len(params.levels) <= 2**bits and np.isin(codes.numpy(), params.levels).all()


@EACH_WIDTH
def test_weights_that_must_stay_zero_have_a_level_there(name, bits):
    module, weight = weight_module(name, bits)
    other = module.with_zero_level()
    assert isinstance(other, WeightModule)
    rounded = other(weight)
    assert not rounded[weight == 0].any() and rounded.any()


@EACH_WIDTH
@pytest.mark.parametrize("granularity", [PerChannel(0), PerTensor()])
def test_zeros_that_fill_up_a_kernel_change_no_other_weight(name, bits, granularity):
    """Grids and levels are those of the kernel without them: a fourth channel, or a border."""
    entry = QAT_QUANTIZERS[name]
    spec = QuantSpec(bits, True, True, granularity)
    real = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 4
    rounded, scales = [], []
    for pads in ((0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1), (0, 1, 0, 1, 0, 0)):
        weight = torch.nn.functional.pad(real, pads)
        scheme = scheme_for(bits, SCHEMES[entry.scheme]())
        module = entry().weight(scheme(weight.numpy(), spec)[0], weight)
        with torch.no_grad():
            module.train()(weight)  # what follows the weights follows them here
            rounded.append(module.eval()(weight)[:, :3, :3, :3])
            scales.append(module.scale)
    for k in (1, 2):
        torch.testing.assert_close(rounded[k], rounded[0])
        torch.testing.assert_close(scales[k], scales[0])


@EACH_WIDTH
def test_a_range_that_follows_is_that_of_the_weights(name, bits):
    module, weight = weight_module(name, bits)
    before = module.scale.detach().clone()
    module.train()(2 * weight)
    if name != "sat":  # its scale is that of all weights, by their variance
        torch.testing.assert_close(module.scale, before * (2 if module.follows_range else 1))
    if module.follows_range:
        module.update_range(3 * weight)
        torch.testing.assert_close(module.scale, before * 3)


@ALL
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", [0, 1])
def test_activation_modules_hold_to_the_protocol(name, bits, zero):
    module = activation_module(name, bits, zero)
    assert isinstance(module, nn.Module) and isinstance(module, ActivationModule)
    assert type(module.decays) is bool
    x = torch.linspace(-2, 3, 60).reshape(4, 15).requires_grad_()
    out = module.train()(x)
    (out.square().sum() + 0 * sum(p.sum() for p in module.parameters())).backward()
    assert out.shape == x.shape and x.grad.isfinite().all() and x.grad.any()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.fill_(-1e9)
    module.project()
    assert module.scale.shape == (1,) and (module.scale > 0).all()
    params = module.freeze()
    assert 0 <= int(params.zero_point) <= params.spec.qmax and params.scale.shape == ()
    codes = module.eval()(x) / module.scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
