"""Ternary, binary and k-means weights: the papers' known answers and gradients."""

import numpy as np
import pytest
import torch

from qtool.qat.quantizers.base import module_with_zero
from qtool.qat.quantizers.binary import BWN, BinaryConnect
from qtool.qat.quantizers.binary.binaryconnect import hard_sigmoid
from qtool.qat.quantizers.nonuniform import KMeansCentroids
from qtool.qat.quantizers.ternary import TTQ, TWN
from qtool.quant.primitives import Codebook, PerChannel, QuantParams, QuantSpec, dequantize
from qtool.weights import SCHEMES

RNG = np.random.default_rng(15)


def grid(bits: int, scale: float = 1.0) -> QuantParams:
    return QuantParams(QuantSpec(bits, True, True), np.float32(scale), np.int32(0))


def rounded(module, weight):
    """Values of weights and what is written."""
    module.train()(weight)
    codes, params = module.eval().freeze(weight)
    values = dequantize(codes.detach().numpy(), params)
    np.testing.assert_allclose(module(weight).detach().numpy(), values, rtol=1e-6)
    return codes, params


@pytest.mark.parametrize("exact", [False, True])
def test_known_answer_of_twn(exact):
    weight = torch.tensor([0.1, -0.2, 0.6, -0.9])
    module = TWN(exact=exact).weight(grid(2), weight)
    codes, params = rounded(module, weight)
    assert codes.tolist() == [0, 0, 1, -1] and params.levels.tolist() == [-1, 0, 1]
    assert float(params.scale) == pytest.approx(0.75)


def test_the_exact_threshold_of_twn_has_the_smallest_error_of_all():
    weight = torch.from_numpy(RNG.laplace(size=(6, 40)).astype(np.float32))
    spec = QuantSpec(2, True, True, PerChannel(0))
    params = QuantParams(spec, np.ones(6, np.float32), np.zeros(6, np.int32))
    module = TWN(exact=True).weight(params, weight)
    error = (module(weight) - weight).square().sum(1).detach()
    size = weight.abs().sort(1, descending=True).values
    for k in range(1, 41):
        alpha = size[:, :k].mean(1, keepdim=True)
        other = (size[:, :k] - alpha).square().sum(1) + size[:, k:].square().sum(1)
        assert (error <= other + 1e-4).all()
    codes, scheme = module.freeze(weight)
    expected, same = SCHEMES["ternary"](exact=True)(weight.numpy(), spec)
    np.testing.assert_array_equal(codes.numpy(), same)
    np.testing.assert_allclose(scheme.scale, expected.scale, rtol=1e-5)


def test_known_answer_of_ttq():
    weight = torch.tensor([0.9, 0.3, -0.02, -0.6], requires_grad=True)
    module = TTQ().weight(grid(2), weight)
    with torch.no_grad():
        module.unit.fill_(1.0)
        module.positive.fill_(0.7)
        module.negative.fill_(0.5)
    module(weight).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert module.codes(weight).tolist() == [1, 1, 0, -1]
    assert (module.positive.grad.item(), module.negative.grad.item()) == (3.0, -4.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.7, 1.4, 3.0, 2.0]))
    codes, params = rounded(module, weight.detach())
    assert params.levels.tolist() == [-91, 0, 127] and codes.tolist() == [127, 127, 0, -91]
    assert float(params.scale) == pytest.approx(0.7 / 127)


def test_gradients_of_both_values_of_ttq_by_finite_differences():
    weight = torch.from_numpy(RNG.normal(size=(4, 9)).astype(np.float32))
    spec = QuantSpec(2, True, True, PerChannel(0))
    params = QuantParams(spec, np.ones(4, np.float32), np.zeros(4, np.int32))
    module = TTQ(threshold=0.2).weight(params, weight)
    slope = torch.from_numpy(RNG.normal(size=(4, 9)).astype(np.float32))
    (module(weight) * slope).sum().backward()
    codes, unit = module.codes(weight), module.unit.reshape(-1, 1)

    def loss(p, n):  # without the rounding to levels
        return float((((codes > 0) * p - (codes < 0) * n) * unit * slope).sum())

    d = 0.5
    assert module.positive.grad.item() == pytest.approx(loss(1 + d, 1) - loss(1 - d, 1), abs=1e-4)
    assert module.negative.grad.item() == pytest.approx(loss(1, 1 + d) - loss(1, 1 - d), abs=1e-4)


def test_ttqs_values_stay_positive_and_within_the_levels_of_int8():
    module = TTQ().weight(grid(2), torch.tensor([1.0, -1.0]))
    module.positive.data.fill_(2.0)
    module.negative.data.fill_(-3.0)
    module.project()
    assert [int(v) for v in module.levels()] == [127, 2]


def test_known_answer_of_bwn():
    weight = torch.tensor([0.5, -1.5, 2.0, -1.0])
    module = BWN().weight(grid(1), weight)
    codes, params = rounded(module, weight)
    assert codes.tolist() == [1, -1, 1, -1] and params.levels.tolist() == [-1, 1]
    assert float(params.scale) == 1.25
    errors = [float((weight - a * codes).square().sum()) for a in (1.25, 1.2, 1.3)]
    assert errors[0] == 1.25 and errors[1:] == pytest.approx([1.26, 1.26])


def test_gradients_of_bwn():
    slope = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for gradient, expected in (
        ("straight_through", slope),
        ("paper", slope * torch.tensor([1.5, 0.25, 0.25, 1.5])),
    ):
        weight = torch.tensor([0.5, -1.5, 2.0, -1.0], requires_grad=True)
        BWN(gradient=gradient).weight(grid(1), weight)(weight).backward(slope)
        torch.testing.assert_close(weight.grad, expected)


def test_known_answers_of_binaryconnect():
    values = torch.tensor([0.5, -1.0, 2.0])
    assert hard_sigmoid(values).tolist() == [0.75, 0.0, 1.0]
    weight = torch.full((100_000,), 0.5)
    module = BinaryConnect(stochastic=True).weight(grid(1), weight)
    module.scale.fill_(1.0)
    torch.manual_seed(0)
    assert float(module.train()(weight).mean()) == pytest.approx(0.5, abs=0.01)
    assert (module.eval()(weight) == 1).all()
    far = torch.tensor([3.0, -0.5, -2.0])
    module.clip_weight(far)
    assert far.tolist() == [1.0, -0.5, -1.0]


def codebook(levels) -> Codebook:
    spec = QuantSpec(2, True, True)
    return Codebook(spec, np.float32(1 / 127), np.int32(0), np.array(levels, np.int32))


def test_gradients_of_centroids_are_summed_over_their_weights():
    weight = torch.tensor([-0.9, 0.1, 0.2, 0.8, 1.0], requires_grad=True)
    module = KMeansCentroids().weight(codebook([-127, 0, 64, 127]), weight)
    module(weight).backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    torch.testing.assert_close(module.centroids.grad, torch.tensor([1.0, 5.0, 0.0, 9.0]))
    assert weight.grad is None
    with torch.no_grad():
        module.centroids.copy_(torch.tensor([-0.5, 0.6, 0.5, 2.0]))
    codes, params = module.freeze(torch.zeros(5))  # weights no longer count
    assert codes.tolist() == [-32, 38, 38, 127, 127]
    assert params.levels.tolist() == [-32, 32, 38, 127]
    assert float(params.scale) == pytest.approx(2 / 127)  # a centroid may grow beyond its start


@pytest.mark.parametrize("nearest", [False, True])
def test_the_centroid_nearest_to_zero_is_that_of_pruned_weights(nearest):
    weight = torch.tensor([-0.9, 0.0, 0.2, 0.8, 1.0])
    book, quantizer = codebook([-127, 20, 64, 127]), "nearest" if nearest else "fixed"
    plain = KMeansCentroids(indices=quantizer).weight(book, weight)
    module = module_with_zero(plain, weight, "w")
    module(weight).sum().backward()
    with torch.no_grad():
        module.centroids += 0.01  # as an optimizer that has momentum would
    module.project()
    rounded, (codes, params) = module(weight), module.freeze(weight)
    assert rounded[1] == 0 and codes[1] == 0 and (rounded[[0, 3, 4]] != 0).all()
    assert 0 in params.levels and len(params.levels) == 4
    torch.testing.assert_close(rounded, codes * float(params.scale))


def test_a_layer_of_zeros_and_two_centroids_stay_numbers():
    weight = torch.zeros(5)
    plain = KMeansCentroids().weight(SCHEMES["kmeans"]()(weight.numpy(), grid(2).spec)[0], weight)
    assert not plain.with_zero_level()(weight).any()
    module = KMeansCentroids().weight(SCHEMES["binary"]()(np.ones(4), grid(1).spec)[0], weight + 1)
    rounded = module.with_zero_level()(torch.tensor([0.0, 1.0, -1.0, 1.0, 0.0]))
    assert rounded[0] == 0 and rounded[1] != 0 and len(module.levels()) == 2


def test_weights_that_take_the_nearest_centroid_learn_too():
    weight = torch.tensor([-0.9, 0.1, 0.2, 0.8, 1.0], requires_grad=True)
    module = KMeansCentroids(indices="nearest").weight(codebook([-127, 0, 64, 127]), weight)
    module(weight).backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    torch.testing.assert_close(module.centroids.grad, torch.tensor([1.0, 5.0, 0.0, 9.0]))
    torch.testing.assert_close(weight.grad, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    with torch.no_grad():
        module.centroids.copy_(torch.tensor([-0.5, 1.0, 0.0, 0.5]))  # in another order
    assert module.freeze(weight)[0].tolist() == [-64, 0, 0, 127, 127]
