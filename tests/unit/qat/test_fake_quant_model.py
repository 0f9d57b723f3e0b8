"""Training on the fake-quantized graph: gradients, exact folding, and a loop of one's own."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from models import Net, bind, cpu, feeds_for, make_grids, make_plan, rewritten, run, two_convs

import qtool
from qtool.calibration import MinMax
from qtool.emitters import emit_qdq
from qtool.errors import RecipeError
from qtool.qat.batchnorm import fold_norm
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers import QAT_QUANTIZERS
from qtool.qat.quantizers.dorefa import DoReFaWeight
from qtool.qat.quantizers.ewgs import EWGS, EWGSGradient
from qtool.qat.quantizers.learned_step import learned_step
from qtool.qat.quantizers.lsq import LSQ, LSQGradient
from qtool.qat.quantizers.lsq_plus import LSQPlusGradient
from qtool.qat.quantizers.pact import PACTActivation, PACTGradient
from qtool.qat.quantizers.sat import SATActivation
from qtool.qat.quantizers.ste import STE, straight_through
from qtool.qat.quantizers.trainable import trained_widths
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan import same_structure
from qtool.quant.primitives import PerChannel, QuantParams, QuantSpec
from qtool.simulation.fake_quant import Simulation
from qtool.weights import SCHEMES
from qtool.weights.grids import weight_grids
from qtool.weights.ternary import Ternary


def surrogate(x, s, lo, hi, residual):
    """What straight-through differentiates: the rounding error held still."""
    v = np.clip(x / s, lo, hi)
    return (v + residual) * s


@pytest.mark.parametrize(
    ("value", "want"), [(1.3, -0.3), (5.0, 3.0), (-9.0, -4.0), (0.65 / 0.5, -0.3)]
)
def test_known_gradients_of_the_step(value, want):
    scale = torch.tensor(1.0, requires_grad=True)
    learned_step(torch.tensor([value]), scale, (-4, 3), LSQGradient()).sum().backward()
    assert float(scale.grad) == pytest.approx(want, abs=1e-6)


def test_gradients_by_finite_differences():
    rng = np.random.default_rng(0)
    x, s = rng.normal(0, 3, 50), 0.7
    residual = np.rint(np.clip(x / s, -4, 3)) - np.clip(x / s, -4, 3)
    weight = rng.normal(size=50)
    tx = torch.tensor(x, requires_grad=True)
    ts = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    (learned_step(tx, ts, (-4, 3), LSQGradient()) * torch.tensor(weight)).sum().backward()
    eps = 1e-6
    for k in range(50):
        bumped = [np.where(np.arange(50) == k, x + d, x) for d in (eps, -eps)]
        up, down = (surrogate(b, s, -4, 3, residual) @ weight for b in bumped)
        assert float(tx.grad[k]) == pytest.approx((up - down) / (2 * eps), abs=1e-4)
    up, down = (surrogate(x, s + d, -4, 3, residual) @ weight for d in (eps, -eps))
    assert float(ts.grad) == pytest.approx((up - down) / (2 * eps), abs=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_one_scale_equal_those_of_a_scale_per_channel_summed(layout):
    """One scale for all takes dot products; several take sums of products."""
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout)
    found = []
    for shape in ([], [1], [3, 1, 1]):
        leaf, scale = x.clone().requires_grad_(), torch.full(shape, 0.3, requires_grad=True)
        learned_step(leaf, scale, (-3, 12), LSQGradient()).square().sum().backward()
        found.append((leaf.grad, float(scale.grad.sum())))
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0])
        assert other[1] == pytest.approx(found[0][1], rel=1e-4)


@pytest.mark.parametrize("zero", [None, 3.2])
@pytest.mark.parametrize(
    "gradient",
    [LSQGradient(0.5), LSQPlusGradient(0.5), EWGSGradient(0.5, 0.3), PACTGradient(0.5)],
    ids=lambda gradient: type(gradient).__name__,
)
@pytest.mark.parametrize("wide", [0, 255])
def test_gradients_of_the_step_are_those_written_down(zero, gradient, wide, monkeypatch):
    """Element by element, from the definitions, in float64; wide grids and narrow ones."""
    monkeypatch.setattr("qtool.qat.quantizers.learned_step.WIDE", wide)
    delta, clips_alone = getattr(gradient, "delta", 0.0), isinstance(gradient, PACTGradient)
    g = torch.Generator().manual_seed(1)
    x = (torch.randn(200, generator=g, dtype=torch.float64) * 4).requires_grad_()
    s = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    z = None if zero is None else torch.tensor([zero], dtype=torch.float64, requires_grad=True)
    w = torch.randn(200, generator=g, dtype=torch.float64)
    y = learned_step(x, s, (-4, 9), gradient, z)
    y.backward(w)
    at, whole = x.detach().numpy() / 0.7, round(zero or 0)
    lo, hi = -4 - whole, 9 - whole
    q = np.rint(np.clip(at, lo, hi))
    np.testing.assert_allclose(y.detach().numpy(), q * 0.7, atol=1e-12)
    inside = (at > lo) & (at < hi)
    dx = w.numpy() * (1 + delta / 9 * np.sign(w.numpy()) * (at - q)) * inside
    np.testing.assert_allclose(x.grad.numpy(), dx, atol=1e-12)
    ds = w.numpy() * q - dx * (q if clips_alone else at)
    assert float(s.grad) == pytest.approx(0.5 * ds.sum(), rel=1e-9)
    if z is not None:
        learns = isinstance(gradient, LSQPlusGradient)
        dz = -0.5 * 0.7 * (w.numpy() - dx).sum() if learns else 0
        assert float(z.grad) == pytest.approx(dz, rel=1e-9)


@pytest.mark.parametrize("zero", [None, 300.0])
@pytest.mark.parametrize("gradient", [LSQGradient(), PACTGradient()], ids=["lsq", "pact"])
def test_float32_holds_the_gradients_of_wide_grids(zero, gradient):
    """Codes of 16 bits against what is left of a step: sums of either cancel five digits."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1 << 18, generator=g) * 640 + 5  # all inside
    w = torch.randn(1 << 18, generator=g) + 1
    found = []
    for kind in (torch.float32, torch.float64):
        s = torch.tensor([0.01], requires_grad=True).to(kind)
        s.retain_grad()
        z = None if zero is None else torch.tensor([zero], dtype=kind)
        y = learned_step(x.to(kind), s, (0, 65535), gradient, z)
        y.backward(w.to(kind))
        found.append(float(s.grad))
    # float32 holds x / s to 1/512 of a step, and some of them round the other way: about 20 here.
    # The two sums apart are off by 4000.
    assert found[0] == pytest.approx(found[1], abs=60)


def test_rounding_is_half_to_even_and_passes_gradients():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5], requires_grad=True)
    y = straight_through(x)
    assert y.tolist() == [0, 2, 2, 0]
    y.sum().backward()
    assert x.grad.tolist() == [1] * 4


def normed_net() -> Net:
    """Convolutions with BatchNorm (one without bias), a residual sum, a linear layer."""
    net = Net(opset=21)
    x = net.input("x", "N", 3, 8, 8)
    x = net.add("Relu", net.norm(net.conv(x, 3, 8, name="stem"), 8))
    y = net.add("Relu", net.norm(net.conv(x, 8, 8, name="a"), 8))
    y = net.norm(net.conv(y, 8, 8, name="b"), 8)
    x = net.add("Relu", net.add("Add", x, y))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.output(net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y"))


def planned(net: Net, bits: Bits, scheme=None):
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    plan = make_plan(model, cpu(), bits)
    plan = weight_grids(model, plan, scheme)
    grids = make_grids(model, plan, [feeds_for(model, seed=1, rows=8)], MinMax())
    return model, freeze(model, grids)


def logits(net: QatNetwork, feeds) -> torch.Tensor:
    return net({k: torch.from_numpy(v) for k, v in feeds.items()})["y"]


@pytest.mark.parametrize("batchnorm", ["live", "frozen", "folded"])
@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(2, 3)], ids=["W8A8", "W4A4", "W2A3"])
def test_before_training_it_is_the_plan(bits, batchnorm):
    model, plan = planned(normed_net(), bits)
    network = QatNetwork(model, plan, LSQ(), batchnorm).eval()
    assert len(network.norms) == (0 if batchnorm == "folded" else 3)
    again = freeze(model, network.freeze())
    assert same_structure(again, plan)
    for name, codes in plan.codes.items():
        # The lowest code, which the calibrated grid leaves out, may be the nearer one.
        low = codes == plan.params(name).spec.qmin
        off = np.where(low, 0, np.abs(again.codes[name].astype(int) - codes))
        # Undoing and redoing the folding moves a weight by a rounding error of float32.
        assert off.max() <= 1 and (off > 0).mean() < 0.01
    feeds = feeds_for(model, seed=4, rows=4)
    got = Simulation(model, again)(feeds, ["y"])["y"]
    torch.testing.assert_close(logits(network, feeds).detach(), got, rtol=0, atol=1e-4)


def trained(network: QatNetwork, feeds) -> list[float]:
    """40 steps on made-up classes; returns the loss of each."""
    target = torch.randint(0, 5, (16,), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(network.train(), feeds), target)
        loss.backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients)
        optimizer.step()
        network.project()
        losses.append(loss.item())
    return losses


def assert_the_file_is_what_was_trained(network: QatNetwork, model, feeds) -> None:
    learned = freeze(model, network.eval().freeze())
    with torch.no_grad():
        want = logits(network, feeds)
    # Codes are the same; sums of float32 in another order may move a value by a step now and then.
    atol = 1e-3 * float(want.abs().max())
    simulated = Simulation(model, learned)(feeds, ["y"])["y"]
    torch.testing.assert_close(want, simulated, rtol=0, atol=atol)
    emitted = run(emit_qdq(model, learned, cpu()), feeds)["y"]
    np.testing.assert_allclose(emitted, simulated, atol=atol)


@pytest.mark.parametrize("batchnorm", ["live", "frozen", "folded"])
def test_after_training_the_file_is_what_was_trained(batchnorm):
    model, plan = planned(normed_net(), Bits(3, 4))
    network = QatNetwork(model, plan, LSQ(), batchnorm)
    feeds = feeds_for(model, seed=2, rows=16)
    losses = trained(network, feeds)
    assert losses[-1] < 0.75 * losses[0]
    assert_the_file_is_what_was_trained(network, model, feeds)


def tied_net(weights: bool) -> Net:
    """Two Convs and a Gemm with one bias; the Convs may have one weight, too."""
    net = Net(opset=21)
    bias, weight = net.const(np.linspace(-1, 1, 5, dtype=np.float32), "b"), net.weight(5, 5, 3, 3)
    x = net.input("x", "N", 5, 8, 8)
    x = net.add("Relu", net.add("Conv", x, weight, bias, pads=[1] * 4, name="first"))
    other = weight if weights else net.const(np.full((5, 5, 3, 3), 0.003, np.float32), "v")
    x = net.add("Relu", net.add("Conv", x, other, bias, pads=[1] * 4, name="second"))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.output(net.add("Gemm", x, net.weight(5, 5), bias, transB=1, out="y"))


@pytest.mark.parametrize("weights", [True, False])
def test_tied_biases_are_parted_and_every_one_learns(weights):
    model, plan = planned(tied_net(weights), Bits(3, 4))
    biases = {site.bias for site in plan.sites.values() if site.bias}
    assert (
        len(biases) == 3 and len({s.weight for s in plan.sites.values() if s.weight}) == 3 - weights
    )
    network = QatNetwork(model, plan, LSQ())
    feeds = feeds_for(model, seed=2, rows=16)
    with torch.no_grad():
        again = freeze(model, network.eval().freeze())
        assert torch.equal(logits(network, feeds), Simulation(model, again)(feeds, ["y"])["y"])
    losses = trained(network, feeds)
    assert losses[-1] < losses[0]
    values = network.freeze().weight_overrides
    assert len({values[name].tobytes() for name in biases}) == 3
    assert_the_file_is_what_was_trained(network, model, feeds)


def test_biases_that_no_rewrite_parted_are_one_on_the_last_layers_grid():
    model = tied_net(weights=False).model()
    feeds = feeds_for(model, seed=2, rows=16)
    bind(model, feeds)
    rewritten(model, "fold_constants")
    plan = make_plan(model, cpu(), Bits(3, 4))
    plan = freeze(model, make_grids(model, plan, [feeds], MinMax()))
    assert {site.bias for site in plan.sites.values() if site.bias} == {"b"}
    network = QatNetwork(model, plan, LSQ())
    assert len(network.biases) == 1
    trained(network, feeds)
    assert_the_file_is_what_was_trained(network, model, feeds)


def test_constant_operands_are_rounded_as_in_the_file():
    rng = np.random.default_rng(0)
    model, plan = planned(two_convs(middle=rng.normal(0, 1, (1, 8, 1, 1))), Bits(4, 4))
    network, feeds = QatNetwork(model, plan, LSQ()).eval(), feeds_for(model, rows=8)
    simulated = Simulation(model, freeze(model, network.freeze()))(feeds, ["y"])["y"]
    with torch.no_grad():
        torch.testing.assert_close(logits(network, feeds), simulated, rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model, plan = planned(normed_net(), Bits(4, 4))
    network = QatNetwork(model, plan, LSQ(), "live")
    logits(network, feeds_for(model, rows=8)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None]
    assert not dead
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_folding_back_keeps_codes():
    codes = np.array([[3, -7], [5, 1], [2, 2]], np.int8)
    spec = QuantSpec(4, True, True, PerChannel(0))
    params = QuantParams(spec, np.array([0.1, 0.2, 0.3], np.float32), np.zeros(3, np.int32))
    folded, grid = fold_norm(codes, params, np.array([2.0, 0.5, 0.0]))
    assert folded.tolist() == [[3, -7], [5, 1], [0, 0]]
    np.testing.assert_allclose(grid.scale, [0.2, 0.1, 1.0], rtol=1e-6)
    values = folded * grid.scale[:, None]
    want = codes * params.scale[:, None] * np.array([[2.0], [0.5], [0.0]])
    np.testing.assert_allclose(values, want, rtol=1e-6)


def test_batch_statistics_move_only_when_live():
    model, plan = planned(normed_net(), Bits(4, 4))
    feeds = feeds_for(model, rows=8)
    for batchnorm, moves in (("live", True), ("frozen", False)):
        network = QatNetwork(model, plan, LSQ(), batchnorm)
        before = network.norms["0"].mean.clone()
        logits(network.train(), feeds)
        assert torch.equal(before, network.norms["0"].mean) != moves
        after = network.norms["0"].mean.clone()
        logits(network.eval(), feeds)
        assert torch.equal(after, network.norms["0"].mean)


def entry(name: str):
    return QAT_QUANTIZERS[name]()


@pytest.mark.parametrize(
    ("name", "batchnorm"),
    [(name, "live") for name in QAT_QUANTIZERS]
    + [(name, "folded") for name in ("lsq", "lsq_plus", "pact", "sat", "bwn", "ttq", "kmeans")],
)
def test_every_quantizer_trains_and_its_file_is_what_was_trained(name, batchnorm):
    model, plan = planned(normed_net(), Bits(max(trained_widths(entry(name)) & {1, 2, 3}), 4))
    network = QatNetwork(model, plan, entry(name), batchnorm)
    feeds = feeds_for(model, seed=2, rows=16)
    losses = trained(network, feeds)
    # Signs learn little, in jumps.
    steps, enough = (20, 0.98) if SCHEMES[entry(name).scheme].fixed_bits == 1 else (5, 0.9)
    assert min(losses[-steps:]) < enough * losses[0]
    assert_the_file_is_what_was_trained(network, model, feeds)


@pytest.mark.parametrize("name", ["lsq", "pact"])
@pytest.mark.parametrize("gamma", [0.0, 1e-12])
def test_a_channel_whose_norm_died_keeps_its_shift_and_the_others_what_they_learned(name, gamma):
    model, plan = planned(normed_net(), Bits(3, 2))
    network = QatNetwork(model, plan, entry(name), "live")
    feeds = feeds_for(model, seed=2, rows=16)
    trained(network, feeds)
    for norm in network.norms.values():
        norm.gamma.data[1], norm.beta.data[1] = gamma, 0.37
    assert_the_file_is_what_was_trained(network, model, feeds)
    before = network.freeze()
    after = freeze(model, before)
    for key in network.norms:
        weight = network._names[key]
        others = [k for k in range(len(before.codes[weight])) if k != 1]
        assert before.codes[weight][others].any()
        np.testing.assert_array_equal(after.codes[weight][others], before.codes[weight][others])
        levels = getattr(after.params(weight), "levels", None)
        assert levels is None or np.isin(after.codes[weight], levels).all()


def clipped(calibrated: bool) -> PACTActivation:
    """Level 6 on 4 bits."""
    params = QuantParams(QuantSpec(4, False, False), np.float32(0.4), np.int32(0))
    return SATActivation(params) if calibrated else PACTActivation(params)


@pytest.mark.parametrize(
    ("calibrated", "value", "rounded", "gradient"),
    [(False, 2.5, 2.4, 0.0), (False, 7.0, 6.0, 1.0), (True, 2.5, 2.4, -0.0166667), (True, 7, 6, 1)],
)
def test_known_answers_of_clipping_levels(calibrated, value, rounded, gradient):
    module = clipped(calibrated)
    y = module(torch.tensor([float(value)]))
    y.sum().backward()
    assert y.item() == pytest.approx(rounded, abs=1e-5)
    assert module.alpha.grad.item() == pytest.approx(gradient, abs=1e-5)


def test_known_answer_of_dorefa():
    spec = QuantSpec(4, True, True)
    weight = torch.tensor([0.5, -0.2, 1.0])
    module = DoReFaWeight(QuantParams(spec, np.float32(1), np.int32(0)), weight)
    module.unit.fill_(1.0)
    torch.testing.assert_close(module(weight), torch.tensor([0.6, -0.2, 1.0]))
    codes, grid = module.freeze(weight)
    assert codes.tolist() == [9, -3, 15] and grid.levels.tolist() == list(range(-15, 16, 2))


@pytest.mark.parametrize("name", QAT_QUANTIZERS)
def test_zeros_that_fill_up_a_kernel_stay_zeros(name):
    """A stride of 2 becomes one on 2 x 2 blocks; the kernel of 7 x 7 becomes 8 x 8."""
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, 16, 16), 3, 8, 7, strides=[2, 2], name="stem")
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", net.norm(x, 8))))
    net.output(net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y"))
    model, plan = planned(net, Bits(max(trained_widths(QAT_QUANTIZERS[name]) & {1, 2, 4}), 4))
    stem = plan.sites["stem"].weight
    network = QatNetwork(model, plan, QAT_QUANTIZERS[name]())
    filled = network.weights["0"].detach().numpy() == 0
    assert filled.shape == (8, 12, 4, 4) and filled.sum() >= 8 * 3 * 15
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    logits(network.train(), feeds_for(model)).square().sum().backward()
    optimizer.step()
    assert not network.freeze().codes[stem][filled].any()


def test_sat_keeps_the_variance():
    spec = QuantSpec(2, True, True)
    weight = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)) * 0.1
    module = entry("sat").weight(QuantParams(spec, np.float32(1), np.int32(0)), weight).train()
    for scale in (1.0, 5.0, 0.2):
        assert float(module(weight * scale).var(correction=0)) == pytest.approx(
            float(weight.var(correction=0)), rel=1e-3
        )


@pytest.mark.parametrize(("gradient", "want"), [(1.0, 1.06), (-1.0, -0.94)])
def test_known_answer_of_ewgs(gradient, want):
    x = torch.tensor([0.3], requires_grad=True)
    y = learned_step(x, torch.tensor(1.0), (-1, 1), EWGSGradient(delta=0.2))
    y.backward(torch.tensor([gradient]))
    assert x.grad.item() == pytest.approx(want, abs=1e-6)


def test_ewgs_without_delta_is_lsq():
    found = []
    for chosen in (EWGS(delta=0.0), LSQ()):
        model, plan = planned(normed_net(), Bits(3, 4))
        network = QatNetwork(model, plan, chosen, "folded")
        logits(network, feeds_for(model, rows=4)).square().sum().backward()
        found.append(network.weights["1"].grad)
    torch.testing.assert_close(found[0], found[1])


def test_zero_points_learn_from_what_is_clipped():
    params = QuantParams(QuantSpec(4, False, False), np.float32(0.5), np.int32(4))
    module = entry("lsq_plus").activation(params)
    module(torch.tensor([[0.2, -1.0, 1.3]])).sum().backward()
    assert module.zero.grad.item() == 0
    module.zero.grad = None
    x = torch.tensor([[-9.0, 9.0, 0.1]])
    module(x).sum().backward()
    factor = 1 / np.sqrt(3 * 15)
    assert module.zero.grad.item() == pytest.approx(2 * -0.5 * factor, rel=1e-4)
    with torch.no_grad():
        module.zero.fill_(99.4)
    module.project()
    assert int(module.freeze().zero_point) == 15


def test_moving_ranges_follow_the_data():
    params = QuantParams(QuantSpec(8, False, False), np.float32(1 / 255), np.int32(0))
    module = STE(ranges="ema", momentum=0.1).activation(params).train()
    for hi in (1.0, 2.0, 3.0):
        module(torch.tensor([[0.0, hi]]))
    # 1, then 1 + 0.1, then 1.1 + 0.19: the known answer of an average of maxima.
    assert module.limits[1].item() == pytest.approx(1.29, abs=1e-5)
    assert float(module.freeze().scale) == pytest.approx(1.29 / 255, rel=1e-4)
    module.eval()(torch.tensor([[0.0, 50.0]]))
    assert module.limits[1].item() == pytest.approx(1.29, abs=1e-5)
    weight = STE(ranges="ema").weight(
        QuantParams(QuantSpec(4, True, True, PerChannel(0)), np.ones(2, np.float32), np.zeros(2)),
        torch.ones(2, 3),
    )
    weight.train()(torch.tensor([[0.7, -1.4, 0], [0, 2.8, 0]]))
    assert weight.scale.tolist() == pytest.approx([0.2, 0.4])


def test_straight_through_stops_outside_the_range():
    params = QuantParams(QuantSpec(3, True, True), np.float32(1), np.int32(0))
    x = torch.tensor([-5, -4.2, 0.3, 3.4, 9.0], requires_grad=True)
    entry("ste").weight(params, x)(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 0, 0]


def test_scales_stay_positive():
    model, plan = planned(normed_net(), Bits(4, 4))
    network = QatNetwork(model, plan, LSQ())
    with torch.no_grad():
        for grid in (*network.weight_grids.values(), *network.activation_grids.values()):
            grid.scale.fill_(-1.0)
    network.project()
    for grid in (*network.weight_grids.values(), *network.activation_grids.values()):
        assert float(grid.scale.detach().min()) > 0


def test_what_cannot_be_trained_is_refused():
    model, plan = planned(normed_net(), Bits(1, 8))
    with pytest.raises(RecipeError, match="have 1 bits; LSQ trains weights of 2 or 3"):
        QatNetwork(model, plan, LSQ())
    model, plan = planned(normed_net(), Bits(2, 8), Ternary())
    with pytest.raises(RecipeError, match="have a code book; LSQ trains equal steps"):
        QatNetwork(model, plan, LSQ())
    assert QatNetwork(model, plan, QAT_QUANTIZERS["twn"]()).weights
    model, plan = planned(normed_net(), Bits(4, 8, granularity="tensor"))
    with pytest.raises(RecipeError, match="one scale for all channels"):
        QatNetwork(model, plan, LSQ(), "live")
    assert QatNetwork(model, plan, LSQ(), "folded").weights
    name = next(iter(plan.grids))
    snapped = replace(plan.grids[name].spec, scale_kind="power_of_two")
    grids = {**plan.grids, name: replace(plan.grids[name], spec=snapped)}
    assert QatNetwork(model, replace(plan, grids=grids), LSQ(), "folded").activation_grids


def test_a_loop_of_ones_own(tmp_path):
    onnx.save(normed_net().proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3, 8, 8)).astype(np.float32)
    plan = qtool.quantize(model, [x], bits={"weights": 3, "activations": 4})
    teacher = torch.from_numpy(run(normed_net().proto(), {"x": x})["y"])
    module = qtool.simulate(model, plan, quantizer="lsq")
    scales = {id(p) for p in module.scales()}
    rest = [p for p in module.parameters() if id(p) not in scales]
    groups = [{"params": rest}, {"params": module.scales(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups, lr=3e-3)

    def loss():
        return torch.nn.functional.mse_loss(module(torch.from_numpy(x)), teacher)

    with torch.no_grad():
        before = float(loss())
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        module.project()
    module.eval()
    with torch.no_grad():
        after = float(loss())
    assert after < 0.5 * before
    path = qtool.emit(model, module.plan(), tmp_path / "q.onnx")
    got = run(onnx.load(path), {"x": x})["y"]
    with torch.no_grad():
        want = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"quantizer": "lqs"}, 'did you mean "lsq"'),
        ({"quantizer": {"lsq": {"gradient": 1}}}, "gradient_scale"),
        ({"quantizer": "lsq", "batchnorm": "alive"}, 'did you mean "live"'),
        ({"quantizer": 3}, "expected a name"),
    ],
)
def test_wrong_words(keywords, said, tmp_path):
    onnx.save(normed_net().proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    plan = qtool.quantize(model, [np.zeros((2, 3, 8, 8), np.float32)])
    with pytest.raises(RecipeError) as error:
        qtool.simulate(model, plan, **keywords)
    assert said in str(error.value)
