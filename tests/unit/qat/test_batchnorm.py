"""Statistics of BatchNorm are averaged again over batches that are mixed as in training."""

import numpy as np
import torch
from test_fake_quant_model import normed_net, planned
from test_trainer import Rows

import qtool.qat.trainer as loop
from qtool.data import Dataset
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.lsq import LSQ
from qtool.qat.settings import Settings
from qtool.quant.bit_widths import Bits


def test_samples_that_lie_class_by_class_are_mixed(monkeypatch):
    """Folders of classes come in the order of their names: the first batches know one class."""
    monkeypatch.setattr(loop, "REESTIMATION_BATCHES", 2)
    x = np.random.default_rng(0).normal(size=(320, 3, 8, 8)).astype(np.float32)
    x[160:] += 3
    names, labels = tuple(map(str, range(320))), np.arange(320) // 160
    data = Dataset(names, Rows(x), tuple(range(320)), labels)
    network = QatNetwork(*planned(normed_net(), Bits(8, 8)), LSQ())
    seen: list[torch.Tensor] = []
    stem = next(iter(network.norms.values()))
    stem.register_forward_hook(lambda _, given, __: seen.append(given[0].mean((0, 2, 3))))
    settings = Settings(epochs=1, batch=32, teacher=0.0)
    training = loop._Loop(network, lambda *_: {}, data, data, settings, lambda *_: None)
    training._reestimate(list(network.norms.values()))
    assert len(seen) == 2
    # The plain mean over the batches: no average that moves from the old one.
    torch.testing.assert_close(stem.mean, torch.stack(seen).mean(0), atol=1e-5, rtol=1e-5)
    network.eval()
    with torch.no_grad():
        for part in (x[:160], x[160:]):
            network({"x": torch.from_numpy(part)})
    first, second = seen[2:]
    # 64 samples drawn from both halves: half-way within 4 times the deviation of their shares.
    off = (stem.mean - (first + second) / 2).abs() / (second - first).abs().clamp(min=0.1)
    assert float(off.max()) < 4 * 0.5 / 64**0.5
