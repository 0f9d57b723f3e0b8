"""QIL, LQ-Nets, APoT, N2UQ, NICE, FAQ, regularization: known answers, gradients, properties."""

import itertools

import numpy as np
import pytest
import torch

from qtool.qat.optimizer import rates
from qtool.qat.quantizers import FAQ, NICE, QIL, Regularization
from qtool.qat.quantizers.gradual.nice import uniform_noise
from qtool.qat.quantizers.nonuniform import N2UQ, AdditivePowersOfTwo, LQNets
from qtool.qat.quantizers.nonuniform.lq_nets import all_signs, fitted_basis, nearest_signs
from qtool.qat.quantizers.nonuniform.n2uq import piecewise_linear
from qtool.qat.settings import Settings
from qtool.quant.primitives import PerChannel, QuantParams, QuantSpec, fake_quantize
from qtool.weights import SCHEMES
from qtool.weights.apot import apot_levels

RNG = np.random.default_rng(7)


def grid(bits: int, scale: float = 1.0) -> QuantParams:
    return QuantParams(QuantSpec(bits, True, True), np.array(scale, np.float32), np.int32(0))


def channels(bits: int, count: int) -> QuantParams:
    spec = QuantSpec(bits, True, True, PerChannel(0))
    return QuantParams(spec, np.full(count, 0.5, np.float32), np.zeros(count, np.int32))


def assert_gradients_are_differences(function, parameters, step=1e-3, tolerance=2e-2):
    """Compare the gradients of a piecewise smooth function with its finite differences."""
    function().backward()
    for parameter in parameters:
        flat = parameter.data.view(-1)
        for k in range(flat.numel()):
            before = float(flat[k])
            values = []
            for d in (step, -step):
                flat[k] = before + d
                values.append(function().item())
            flat[k] = before
            expected = (values[0] - values[1]) / (2 * step)
            assert float(parameter.grad.view(-1)[k]) == pytest.approx(expected, rel=tolerance)


def test_known_answer_of_qil():
    module = QIL().weight(grid(2), torch.zeros(1))
    module.half_width.data.fill_(0.3)
    weight = torch.tensor([0.1, 0.35, 0.5, 0.65, 0.9, -0.35])
    expected = torch.tensor([0, 0.25, 0.5, 0.75, 1, -0.25])
    torch.testing.assert_close(module.transformed(weight), expected)


def test_qil_starts_as_the_calibrated_grid_and_its_gradients_are_finite_differences():
    weight = torch.from_numpy(RNG.normal(size=(4, 30)).astype(np.float32))
    module = QIL().weight(channels(4, 4), weight)
    torch.testing.assert_close(module(weight), fake_quantize(weight, module.params))
    for value, parameter in ((0.6, module.center), (0.45, module.half_width), (1.3, module.gamma)):
        parameter.data.fill_(value)
    slope = torch.from_numpy(RNG.normal(size=(4, 30)).astype(np.float32))
    assert_gradients_are_differences(
        lambda: (module.transformed(weight) * slope).sum(),
        (module.center, module.half_width, module.gamma),
    )
    module.center.data.fill_(-3.0)
    module.half_width.data.fill_(-1.0)
    module.project()
    assert 0 < module.half_width.item() <= module.center.item()


def test_known_answer_of_lq_nets():
    x = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    basis = torch.tensor([0.8, 2.5])
    for _ in range(5):
        basis = fitted_basis(x, nearest_signs(x, basis), torch.ones(4))
    torch.testing.assert_close(basis, torch.tensor([1.0, 2.0]), atol=1e-4, rtol=0)
    levels = sorted((all_signs(2) @ basis).tolist())
    assert levels == pytest.approx([-3, -1, 1, 3], abs=1e-3)


def test_no_half_step_of_qem_increases_the_error():
    x = torch.from_numpy(RNG.laplace(size=500).astype(np.float32))
    basis, signs = torch.tensor([0.5, 1.0, 2.0]), torch.ones(500, 3)
    errors = []
    for _ in range(6):
        signs = nearest_signs(x, basis)
        errors.append(float((signs @ basis - x).square().sum()))
        basis = fitted_basis(x, signs, torch.ones(500))
        errors.append(float((signs @ basis - x).square().sum()))
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_the_moving_average_of_lq_nets_keeps_nine_tenths():
    weight = torch.from_numpy(RNG.normal(size=(4, 60)).astype(np.float32))
    module = LQNets().weight(channels(2, 4), weight).train()
    before, other = module.basis.clone(), weight.sign() * weight.square()
    module.fit(other, iterations=1)
    fitted = module.basis.clone()
    module.basis = before
    module(other)
    torch.testing.assert_close(module.basis, 0.9 * before + 0.1 * fitted)


@pytest.mark.parametrize(
    ("bits", "positive"),
    [(2, [1]), (3, [1, 2, 4]), (4, [1, 2, 3, 4, 6, 8, 10])],
)
def test_levels_of_apot_are_those_of_the_authors_code(bits, positive):
    assert apot_levels(bits).tolist() == [-v for v in positive[::-1]] + [0, *positive]


def test_every_level_of_apot_is_a_sum_of_few_powers_of_two():
    for bits in range(2, 7):
        levels = apot_levels(bits)
        ones = [bin(abs(v)).count("1") for v in levels.tolist()]
        assert len(levels) == 2**bits - 1 and max(ones) <= bits // 2 and levels.max() <= 127
    assert apot_levels(7).max() == 127


def test_the_apot_scheme_has_no_larger_error_than_the_full_range():
    weight = RNG.normal(size=(6, 50)).astype(np.float32)
    spec = QuantSpec(4, True, True, PerChannel(0))
    best, codes = SCHEMES["apot"]()(weight, spec)
    full, _ = SCHEMES["apot"](candidates=1)(weight, spec)
    errors = [np.square(fake_quantize(weight, g) - weight).sum(1) for g in (best, full)]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all() and errors[0].sum() < errors[1].sum()
    assert np.isin(codes, best.levels).all()


def test_known_gradients_of_apot():
    """Levels 0 1 2 4: nearest inside, the highest one outside."""
    weight = torch.tensor([1.3, 3.5, 9.0, -9.0], requires_grad=True)
    module = AdditivePowersOfTwo().weight(SCHEMES["apot"]()(np.ones(4), grid(3).spec)[0], weight)
    module.scale.data.fill_(1.0)
    y = module(weight)
    assert y.tolist() == [1.0, 4.0, 4.0, -4.0]
    y.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    expected = (1 - 1.3) + 10 * (4 - 3.5) + 100 * 4 - 1000 * 4
    factor = 1 / np.sqrt(4 * 4)
    assert module.scale.grad.item() == pytest.approx(factor * expected, rel=1e-5)
    assert weight.grad.tolist() == [1.0, 10.0, 0.0, 0.0]


def test_equal_segments_are_straight_through():
    x = torch.tensor([-0.4, 0.3, 1.2, 2.9, 3.4], requires_grad=True)
    y = piecewise_linear(x, torch.tensor(0.0), torch.ones(3))
    y.sum().backward()
    torch.testing.assert_close(y, x.detach().clamp(0, 3))
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_thresholds_are_the_middle_of_segments_and_their_gradients_finite_differences():
    start, lengths = torch.tensor(-0.5), torch.tensor([2.0, 0.5, 1.0])
    edges = torch.tensor([0.499, 0.501, 1.749, 1.751, 2.499, 2.501])
    codes = piecewise_linear(edges, start, lengths).round()
    assert codes.tolist() == [0, 1, 1, 2, 2, 3]
    x = torch.tensor([0.1, 1.6, 2.2, 2.8, -3.0, 5.0])
    slope = torch.tensor([1.0, -2.0, 0.5, 4.0, 9.0, 9.0])
    start.requires_grad_()
    lengths.requires_grad_()
    assert_gradients_are_differences(
        lambda: (piecewise_linear(x, start, lengths) * slope).sum(), (start, lengths)
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_codes_of_n2uq_are_used_about_equally(bits):
    weight = torch.from_numpy(RNG.normal(size=(8, 5000)).astype(np.float32))
    module = N2UQ().weight(channels(bits, 8), weight)
    codes = module.freeze(weight)[0].numpy()
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    assert -(shares * np.log2(shares)).sum() >= 0.95 * bits


def test_noise_has_the_variance_of_a_rounding_error():
    torch.manual_seed(0)
    noise = uniform_noise(torch.zeros(400_000), 1.0)
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.02)
    share = (uniform_noise(torch.zeros(400_000), 0.05) != 0).float().mean()
    assert float(share) == pytest.approx(0.05, rel=0.05)


def test_the_stages_of_nice():
    """Two groups: the first layer is noisy, then rounded; the last one clamped, noisy, rounded."""
    weight = torch.from_numpy(RNG.normal(size=(4, 60)).astype(np.float32))
    first, last = (NICE(groups=2, share=1.0).weight(channels(4, 4), weight) for _ in range(2))
    rounded = first.eval()(weight)
    step = first.scale.detach().reshape(-1, 1)
    clamped = torch.minimum(torch.maximum(weight, -8 * step), 7 * step)
    seen = []
    for share in (0.0, 0.4, 0.7):
        for module, depth in ((first, 0.0), (last, 0.5)):
            module.train().advance(share, depth)
            y = module(weight)
            far = (y - clamped).abs().max().item()
            assert far <= step.max().item() / 2 + 1e-6 or torch.equal(y, rounded)
            seen.append("rounded" if torch.equal(y, rounded) else "noisy" if far else "clamped")
            assert torch.equal(module.eval()(weight), rounded)
    assert seen == ["noisy", "clamped", "rounded", "noisy", "rounded", "rounded"]


def test_known_answer_of_the_learned_penalty():
    weight = torch.tensor([0.3], requires_grad=True)
    module = Regularization(start=2.0).weight(grid(4), weight)
    torch.testing.assert_close(module.train()(weight), weight)
    assert module.eval()(weight).item() == 0.0
    term = module.penalty(weight)
    assert term.item() == pytest.approx(2 * 0.09 - np.log(2), abs=1e-6)
    term.backward()
    assert weight.grad.item() == pytest.approx(2 * 0.6, abs=1e-6)
    assert module.exponent.grad.item() == pytest.approx(2 * 0.09 - 1, abs=1e-6)
    with torch.no_grad():
        module.exponent.fill_(np.log(1 / 0.09))
    module.zero_grad()
    module.penalty(weight).backward()
    assert module.exponent.grad.item() == pytest.approx(0, abs=1e-5), "the fixed point 1 / R"


def test_faq_keeps_8_bit_weights_near_and_its_rate_falls_to_a_1500th():
    weight = torch.from_numpy(RNG.normal(size=(8, 200)).astype(np.float32))
    params = SCHEMES["uniform"]()(weight.numpy(), QuantSpec(8, True, True, PerChannel(0)))[0]
    module = FAQ().weight(params, weight).train()
    cosine = torch.nn.functional.cosine_similarity(module(weight), weight)
    assert float(cosine.min()) > 0.999 and not list(module.parameters())
    settings = Settings(epochs=10, lr=1.5e-3, schedule="exponential")
    falling = [rates(settings, epoch)[0] for epoch in (0, 5, 10)]
    assert falling == pytest.approx([1.5e-3, 1.5e-3 / 1500**0.5, 1e-6])
