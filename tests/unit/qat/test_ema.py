"""The moving average of a network in training."""

import pytest
import torch
from test_trainer import run
from torch import nn

from qtool.qat.ema import MovingAverage


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.tensor(0))


def test_known_averages_of_a_scalar():
    network = Scalar()
    average = MovingAverage(network, 0.25)
    found = []
    for step, value in enumerate((8.0, 16.0, 16.0), 1):
        network.weight.data.fill_(value)
        network.mean = torch.tensor(-value)
        network.count += 1
        average.step(network, step)
        found.append(average.state["weight"].item())
    # Kept at the steps: 2/11, 3/12, then 0.25, where (1 + 3) / (10 + 3) would be more.
    first = 8 * 9 / 11
    want = [first, first / 4 + 12, (first / 4 + 12) / 4 + 12]
    assert found == pytest.approx(want, rel=1e-6)
    assert average.state["mean"].item() == pytest.approx(-want[-1], rel=1e-6)
    assert average.state["count"] == 3


def test_it_stands_in_place_of_the_network_for_a_while():
    network = Scalar()
    average = MovingAverage(network, 0.5)
    network.weight.data.fill_(11.0)
    average.step(network, 1)
    with average.in_place_of(network):
        assert network.weight.item() == pytest.approx(9.0)
    assert network.weight.item() == 11.0


def test_training_ends_with_averaged_weights(tmp_path, monkeypatch):
    import qtool.qat.trainer as loop

    kept = []
    monkeypatch.setattr(
        loop, "MovingAverage", lambda *given: kept.append(MovingAverage(*given)) or kept[-1]
    )
    monkeypatch.setattr(loop, "best_of", lambda history: history[-1].number)
    network, history = run(tmp_path, 6, batchnorm="folded", ema=0.9, lr=0.1)
    (average,) = kept
    found = network.state_dict()
    assert found.keys() == average.state.keys()
    assert all(torch.equal(found[k], average.state[k]) for k in found)
    own = torch.load(tmp_path / "a", weights_only=True)["network"]
    assert not torch.equal(own["weights.0"], found["weights.0"])
    plain, _ = run(tmp_path, 6, "plain", batchnorm="folded", lr=0.1)
    assert all(torch.equal(v, own[k]) for k, v in plain.state_dict().items())
    assert history[-1].score > history[0].score + 10
