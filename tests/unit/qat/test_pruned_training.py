"""Training with masks: zeros stay zeros, masks grow to their sparsity, runs resume bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import feeds_for
from test_fake_quant_model import normed_net, planned
from test_trainer import dataset

import qtool.qat.trainer as loop
from qtool.errors import RecipeError
from qtool.pruning.gradual import GradualPruning
from qtool.pruning.magnitude import Magnitude
from qtool.pruning.method import pruned_layers, with_masks
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers import QAT_QUANTIZERS
from qtool.qat.settings import RunFiles, Settings, best_epoch
from qtool.qat.trainer import train
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.simulation.fake_quant import Simulation


def masked(bits: Bits, sparsity: float):
    """A small network with BatchNorm; a sparsity of 0 gives full masks."""
    model, plan = planned(normed_net(), bits)
    layers, _ = pruned_layers(model, {}, 0.5)
    names = {layer.weight: sparsity for layer in layers}
    weights = {layer.weight: plan.weight(layer.weight, layer.value) for layer in layers}
    return model, with_masks(plan, layers, Magnitude().masks(weights, names)), list(names)


def run(folder, network, epochs, name="a", **options):
    settings = Settings(**{"epochs": epochs, "batch": 32, "lr": 0.02, "teacher": 0.0} | options)
    files = RunFiles(folder / name, None)
    executor = network.executor  # of the float weights
    history, _ = train(
        network,
        lambda feeds, names: executor(feeds, None, names),
        dataset(200, 0),
        dataset(60, 1),
        settings,
        files,
    )
    return history


# Bits of the weights that a quantizer trains; absent: 3.
BITS = {"twn": 2, "ttq": 2}
BINARY = {"binaryconnect", "bwn", "xnor"}  # two levels, neither of them 0: refused before training
FULL = {"lq_nets", "n2uq"}  # every level is learned


@pytest.mark.parametrize("name", sorted(FULL))
def test_a_code_book_without_room_for_zero_is_refused(name):
    model, plan, _ = masked(Bits(3, 4), 0.5)
    with pytest.raises(RecipeError, match="8 learned levels, of which none stays 0"):
        QatNetwork(model, plan, QAT_QUANTIZERS[name](), "live")


@pytest.mark.parametrize("name", sorted(QAT_QUANTIZERS.keys() - BINARY - FULL))
def test_what_was_pruned_before_training_is_zero_after_it(name, tmp_path):
    model, plan, names = masked(Bits(BITS.get(name, 3), 4), 0.5)
    network = QatNetwork(model, plan, QAT_QUANTIZERS[name](), "live")
    run(tmp_path, network, 1, ema=0.9)
    result = network.freeze()
    frozen = freeze(model, result)
    for weight in names:
        np.testing.assert_array_equal(result.masks[weight], plan.masks[weight])
        assert not frozen.codes[weight][~plan.masks[weight]].any()
        assert frozen.codes[weight].any()
        spec = frozen.spec(weight)
        levels = getattr(frozen.grids[weight], "levels", range(spec.qmin, spec.qmax + 1))
        assert 0 in levels and np.isin(frozen.codes[weight], list(levels)).all()
        assert len(levels) <= 2**spec.bits
    feeds = feeds_for(model, 8)
    with torch.no_grad():
        trained = network.eval()({k: torch.as_tensor(v) for k, v in feeds.items()})["y"]
    torch.testing.assert_close(trained, Simulation(model, frozen)(feeds)["y"], rtol=1e-6, atol=1e-6)


def test_masks_grow_and_only_epochs_of_the_final_sparsity_compete(tmp_path):
    model, plan, names = masked(Bits(8, 8), 0.0)
    network = QatNetwork(model, plan, QAT_QUANTIZERS["lsq"](), "live")
    pruning = GradualPruning(Magnitude(), dict.fromkeys(names, 0.8), 2)
    history = run(tmp_path, network, 4, pruning=pruning)
    shares = [epoch.sparsity for epoch in history]
    assert shares[0] == 0 and 0 < shares[1] < shares[2] and shares[2:] == [shares[2]] * 3
    assert shares[2] == pytest.approx(0.8, abs=0.01)
    assert best_epoch(history) >= 2
    masks = network.freeze().masks
    assert {name: round(0.8 * mask.size) for name, mask in masks.items()} == {
        name: int((~mask).sum()) for name, mask in masks.items()
    }


def test_the_smallest_weights_behind_their_batchnorm_are_pruned(tmp_path):
    """Ranked as the file holds them: a weight counts times its BatchNorm's factor."""
    model, plan, names = masked(Bits(8, 8), 0.0)
    network = QatNetwork(model, plan, QAT_QUANTIZERS["lsq"](), "live")
    folded = network.folded_weights()
    for name in names:
        original = plan.weight_overrides[name]
        np.testing.assert_allclose(folded[name], original, rtol=1e-5, atol=1e-7)


def test_a_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    def gradual(network):
        names = list(network.plan.masks)
        return {"pruning": GradualPruning(Magnitude(), dict.fromkeys(names, 0.7), 3)}

    def fresh():
        model, plan, _ = masked(Bits(4, 4), 0.0)
        return QatNetwork(model, plan, QAT_QUANTIZERS["lsq"](), "live")

    whole = fresh()
    expected = run(tmp_path, whole, 4, "whole", **gradual(whole))
    save, stopped = loop._Loop.save, fresh()

    def stop_after_two(self, path):
        save(self, path)
        if len(self.history) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stopped, 4, "part", **gradual(stopped))
    resumed = fresh()
    history = run(tmp_path, resumed, 4, "part", **gradual(resumed))
    assert [replace(e, seconds=0) for e in history] == [replace(e, seconds=0) for e in expected]
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
