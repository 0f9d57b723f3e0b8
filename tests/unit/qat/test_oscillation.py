"""Oscillating weights: counted as the paper counts, dampened, frozen for good."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import feeds_for
from test_fake_quant_model import normed_net, planned
from test_trainer import run
from torch import nn

import qtool.qat.trainer as loop
from qtool.errors import RecipeError
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.oscillation import Oscillations, TransitionRate, threshold
from qtool.qat.quantizers.dorefa import DoReFa
from qtool.qat.quantizers.ewgs import EWGS
from qtool.qat.quantizers.lsq import LSQ, LSQGradient, LSQWeight
from qtool.qat.quantizers.lsq_plus import LSQPlus
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.qat.quantizers.ste import STE, STEWeight
from qtool.qat.settings import Oscillation
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import PerChannel, QuantParams, QuantSpec


def one_weight(values, scale=1.0, follows=None, bits=4, **asked):
    """Weights [1, N] on one channel's grid, and what counts their oscillations."""
    spec = QuantSpec(bits, signed=True, symmetric=True, narrow=True, granularity=PerChannel(0))
    params = QuantParams(spec, np.array([scale], np.float32), np.zeros(1, np.int32))
    weight = nn.Parameter(torch.tensor([values]))
    grid = (
        LSQWeight(params, weight, LSQGradient())
        if follows is None
        else STEWeight(params, follows_range=follows)
    )
    network = SimpleNamespace(weights={"0": weight}, weight_grids={"0": grid})
    return weight, grid, Oscillations(network, Oscillation(**asked))


def moved(weight, values):
    with torch.no_grad():
        weight.copy_(torch.tensor([values]))


def test_the_frequency_of_a_known_sequence():
    weight, _, seen = one_weight([1.2, 3.0])
    found = []
    for value in (1.6, 1.4, 1.6):  # codes 1, 2, 1, 2: the first change turns nothing round
        moved(weight, [value, value + 2])
        seen.step(0.0)
        found.append(seen.frequency[0].item())
    assert found == pytest.approx([0.0, 0.01, 0.0199], abs=1e-9)
    assert seen.last.tolist() == [2, 4]
    assert seen.shares() == (1.0, None)


def test_steps_in_one_direction_are_no_oscillation():
    weight, _, seen = one_weight([0.0])
    for value in (1.0, 2.0, 2.0, 3.0, 5.0):
        moved(weight, [value])
        seen.step(0.0)
    assert seen.frequency.item() == 0 and seen.shares() == (0.0, None)
    moved(weight, [5.0])
    seen.step(0.0)
    moved(weight, [1.0])  # a pause between does not hide the turn
    seen.step(0.0)
    assert seen.frequency.item() == pytest.approx(0.01)


def test_dampening_has_its_known_answer():
    weight, grid, seen = one_weight([0.4, 1.0, 40.0], dampen=1.0)
    added = seen.dampening(1.0)
    added.backward()
    assert added.item() == pytest.approx(0.16) and grid.scale.grad is None
    assert weight.grad[0].tolist() == pytest.approx([0.8, 0, 0])  # 40 lies beyond the grid
    assert seen.dampening(0.0).item() == 0
    assert seen.dampening(0.5).item() == pytest.approx(0.08)
    assert one_weight([0.4])[2].dampening(1.0) is None


def test_the_threshold_falls_along_half_a_cosine():
    assert [threshold(0.01, share) for share in (0, 0.5, 1)] == pytest.approx([0.1, 0.055, 0.01])
    assert threshold(0.3, 0.0) == threshold(0.3, 1.0) == 0.3


@pytest.mark.parametrize("sensitivity", [0.005, 0.02, 0.2])
def test_the_rate_of_weights_adapts_until_the_share_of_changes_is_the_requested_one(sensitivity):
    """Codes change in proportion to the rate; the end of training stops them."""
    pace = TransitionRate(0.01, 0.1)
    rate = 1.0
    for _ in range(1500):
        rate = pace.adapted(0.0)
        pace.update(torch.tensor(min(sensitivity * rate, 1.0)))
    assert rate * sensitivity == pytest.approx(0.01, rel=0.05)
    for _ in range(1500):
        rate = pace.adapted(1.0)
        pace.update(torch.tensor(sensitivity * rate))
    assert rate * sensitivity == pytest.approx(0, abs=1e-4)


def test_a_step_of_the_rate_of_weights():
    pace = TransitionRate(0.01, 0.5)
    pace.update(torch.tensor(0.03))
    assert float(pace.average) == pytest.approx(0.02)
    assert pace.adapted(0.0) == pytest.approx(1 - 0.01)
    assert pace.adapted(0.5) == pytest.approx(1 - 0.01 - 0.015)


@pytest.mark.parametrize("follows", [None, False, True])
def test_a_frozen_weight_keeps_its_code_whatever_happens(follows):
    weight, grid, seen = one_weight([1.2, 7.0], 1.0, follows, freeze=0.15, momentum=0.1)
    grid.train()
    for value in (1.6, 1.4, 1.6):
        moved(weight, [value, 7.0])
        assert not seen.frozen.any()
        seen.step(1.0)
    # Codes 1, 2, 1, 2 with weight 0.1 each: the mean code is 1.171.
    assert seen.frozen.tolist() == [True, False] and seen.mean[0] == 1
    assert weight[0, 0].item() == pytest.approx(1.0) and seen.shares() == (0.0, 0.5)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        with torch.no_grad():
            weight += torch.randn(1, 2, generator=random) * 3
            weight[0, 1] = weight[0, 1].abs() + 1
            if follows is None:
                grid.scale.mul_(torch.rand(1, generator=random) + 0.5)
        seen.step(1.0)
        rounded = grid(weight)
        assert (rounded / grid.scale).round()[0, 0] == 1 and seen.last[0] == 1
        assert grid.freeze(weight)[0][0, 0] == 1
    grid.eval()
    assert (grid(weight) / grid.scale).round()[0, 0] == 1


def test_the_outermost_weight_is_not_frozen_where_the_range_follows_it():
    for follows in (False, True):
        weight, _, seen = one_weight([7.0, 1.0], 1.0, follows, freeze=0.05, momentum=0.1)
        for value in (6.0, 7.0, 6.0, 7.0, 6.0, 7.0):
            moved(weight, [value, 1.0])
            seen.step(1.0)
        assert seen.frozen.tolist() == [not follows, False]


def test_the_gradient_of_a_frozen_weight_is_its_scales():
    """By finite differences of codes times scale, times LSQ's factor."""
    weight, grid, seen = one_weight([1.0, -2.0, 0.3], 0.5, freeze=0.01)
    seen.frozen[:2] = True
    slope = torch.tensor([[2.0, 5.0, 0.7]])
    (grid(weight) * slope).sum().backward()
    codes = torch.tensor([2.0, -4.0])
    free = grid.scale.grad - grid.scale_gradient_factor * (slope[0, 2] * (1 - 0.6))
    assert free.item() == pytest.approx(0, abs=1e-6)  # on the grid LSQ gives the scale nothing
    seen.move_gradients()
    want = (codes * slope[0, :2]).sum() + slope[0, 2] * (1 - 0.6)
    assert grid.scale.grad.item() == pytest.approx(
        (grid.scale_gradient_factor * want).item(), rel=1e-5
    )
    assert weight.grad[0].tolist() == pytest.approx([0, 0, 0.7])


def test_others_are_refused():
    for bits, quantizer, said in ((Bits(8, 8), LSQ(), "4 bits"), (Bits(3, 4), DoReFa(), "lsq")):
        network = QatNetwork(*planned(normed_net(), bits), quantizer)
        with pytest.raises(RecipeError, match=rf"qat\.oscillation.*{said}"):
            Oscillations(network, Oscillation())


ASKED = Oscillation(dampen=0.01, freeze=0.02, momentum=0.1)


@pytest.mark.parametrize(
    "quantizer", [LSQ(), LSQPlus(), EWGS(), STE(), STE(ranges="ema")], ids=lambda q: str(q)
)
def test_what_was_frozen_is_in_the_plan(quantizer, tmp_path, monkeypatch):
    """The codes of the plan are those frozen, of the last epoch and of the best one."""
    kept = []
    monkeypatch.setattr(
        loop,
        "Oscillations",
        lambda *given: kept.append(Oscillations(*given)) or kept[-1],
    )
    monkeypatch.setattr(loop, "best_epoch", lambda history: history[-1].number)
    for ema in (None, 0.9):
        name = f"frozen{ema}"
        network, history = run(
            tmp_path, 4, name, quantizer=quantizer, lr=0.05, oscillation=ASKED, ema=ema
        )
        assert history[0].frozen is None and 0 < history[-1].frozen < 1, history
        seen = kept[-1]
        for layer in seen._layers:
            codes = layer.grid.freeze(layer.weight)[0]
            frozen = layer.of(seen.frozen)
            assert torch.equal(codes[frozen], layer.of(seen.mean)[frozen])
            scale = broadcast_scale(layer.grid.scale, layer.weight, layer.grid.params)
            rounded = (layer.grid(layer.weight) / scale).round()
            assert torch.equal(rounded[frozen], layer.of(seen.mean)[frozen])
        feeds = feeds_for(planned(normed_net(), Bits(3, 4))[0])
        assert network({k: torch.from_numpy(v) for k, v in feeds.items()})["y"].isfinite().all()


def test_counting_alone_changes_nothing(tmp_path):
    plain, history = run(tmp_path, 2, "plain")
    counted, again = run(tmp_path, 2, "counted", oscillation=Oscillation())
    assert [e.score for e in history] == [e.score for e in again]
    a, b = plain.state_dict(), counted.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert history[-1].oscillating is None and again[-1].frozen is None
    assert 0 < again[-1].oscillating < 1
    json.dumps(again[-1].oscillating)


def test_fewer_transitions_are_requested_and_fewer_happen(tmp_path):
    _, plain = run(tmp_path, 3, "plain", oscillation=Oscillation())
    paced = Oscillation(transitions=1e-4, momentum=0.5)
    _, history = run(tmp_path, 3, "paced", oscillation=paced)
    assert history[-1].oscillating < plain[-1].oscillating
    assert history[1].loss != plain[1].loss, "another rate from the second step on"


def test_dampening_brings_weights_to_their_codes(tmp_path, monkeypatch):
    """And the loss that is told does not contain it."""

    def distance(network):
        seen = Oscillations(network, Oscillation(dampen=1.0))
        return seen.dampening(1.0).item()

    monkeypatch.setattr(loop, "best_epoch", lambda history: history[-1].number)
    options = {"batchnorm": "folded", "weight_decay": 0.0, "clip": 0.0}
    plain, history = run(tmp_path, 6, "plain", **options)
    held, again = run(tmp_path, 6, "held", oscillation=Oscillation(dampen=1.0), **options)
    assert distance(held) < 0.8 * distance(plain)
    assert again[-1].loss < 2 * history[-1].loss
