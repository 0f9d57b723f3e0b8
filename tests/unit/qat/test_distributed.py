"""Two processes train as one does: statistics, gradients, history, going on where it stopped."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_fake_quant_model import normed_net, planned
from test_trainer import run

from qtool.errors import RecipeError
from qtool.qat import batchnorm, distributed
from qtool.qat.block_outputs import block_error
from qtool.qat.quantizers.ste import STEActivation
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import PerTensor, QuantParams, QuantSpec

OPTIONS = {"batch": 31, "crop": 1, "flip": True, "clip": 1.0, "warmup": 1.0, "optimizer": "sgd"}


def batch(shape=(7, 3, 4, 5)):
    """Rows [N, C, H, W] far from 0, what their gradients are weighed with, gamma, beta."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random) * 2 + torch.tensor([5.0, 0.0, -3.0]).reshape(-1, 1, 1)
    weight = torch.randn(shape, generator=random)
    return x, weight, torch.tensor([1.5, -0.5, 0.0]), torch.tensor([0.1, 0.2, 0.3])


def normalized(x, weight, gamma, beta, norm):
    """The results and gradients of x, gamma and beta."""
    leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
    y, *rest = norm(*leaves)
    (y * weight).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves), *rest]


def check_norm(rank: int) -> None:
    """Against torch's BatchNorm on the whole batch; 4 rows here, 3 there."""
    x, weight, gamma, beta = batch()
    mean, var = torch.zeros(3), torch.zeros(3)

    def whole(x, gamma, beta):
        return F.batch_norm(x, mean, var, gamma, beta, True, 1.0, 1e-5), mean, var

    def parts(x, gamma, beta):
        y, statistics = batchnorm.batch_norm(x, gamma, beta, 1e-5)
        count = statistics.count
        assert count.tolist() == [140.0] * 3
        return y, statistics.mean, statistics.var * count / (count - 1)

    want = normalized(x, weight, gamma, beta, whole)
    found = normalized(x[rank::2], weight[rank::2], gamma, beta, parts)
    for k in (0, 1):  # y and the gradient of x: this process's rows
        torch.testing.assert_close(found[k], want[k][rank::2], atol=1e-5, rtol=1e-5)
    for k in (2, 3):  # gradients of parameters: they sum to those of the whole batch
        torch.testing.assert_close(
            distributed.all_reduce_sum(found[k]), want[k], atol=1e-4, rtol=1e-5
        )
    for k in (4, 5):
        torch.testing.assert_close(found[k], want[k], atol=1e-5, rtol=1e-5)


def check_ranges(rank: int) -> None:
    """Moving ranges follow the limits over all processes."""
    spec = QuantSpec(8, False, False, PerTensor())
    params = QuantParams(spec, torch.tensor(0.1).numpy(), torch.tensor(0).int().numpy())
    grids = [STEActivation(params, 0.5) for _ in range(2)]
    x = batch()[0]
    processes_seen, low, high = x[rank::2], x.min(), x.max()
    grids[0](processes_seen)
    start = torch.tensor([params.lo, params.hi], dtype=torch.float32).flatten()
    torch.testing.assert_close(grids[0].limits, (start + torch.stack([low, high])) / 2)


def check_blocks(rank: int) -> None:
    """The error of blocks is measured in units of the whole batch."""
    a, b, *_ = batch()
    want = block_error({"a": a, "b": b}, {"a": b, "b": a}, ("a", "b"))
    ours = [{"a": x[rank::2], "b": y[rank::2]} for x, y in ((a, b), (b, a))]
    part = block_error(*ours, ("a", "b")) * (len(a[rank::2]) / len(a))
    torch.testing.assert_close(distributed.all_reduce_sum(part), want)


def work(rank: int, port: int, folder: Path) -> None:
    """What each of the two processes does."""
    told = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    torch.set_num_threads(1)
    # Planned in each process alone: calibration inside the group would share the samples.
    starts = [planned(normed_net(), Bits(3, 4)) for _ in range(3)]
    with distributed.joined("cpu"):
        check_norm(rank)
        check_ranges(rank)
        check_blocks(rank)
        network, history = run(folder, 3, "whole", start=starts.pop(), **OPTIONS)
        for tensor in network.state_dict().values():  # equal to the last bit
            assert torch.equal(*distributed.all_gather(tensor.float()))
        stopped_after(folder, 1, starts.pop())
        resumed, again = run(folder, 3, "part", start=starts.pop(), **OPTIONS)
        assert [(e.loss, e.score) for e in again] == [(e.loss, e.score) for e in history]
        a, b = network.state_dict(), resumed.state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    if rank == 0:
        lines = [(e.loss, e.score) for e in history]
        (folder / "history.json").write_text(json.dumps(lines))


def stopped_after(folder: Path, last: int, start) -> None:
    """A run that is interrupted in the epoch after ``last``."""
    import qtool.qat.trainer as loop

    original = loop._Loop.epoch

    def epoch(self, number):
        if number > last:
            raise KeyboardInterrupt
        return original(self, number)

    loop._Loop.epoch = epoch
    try:
        with pytest.raises(KeyboardInterrupt):
            run(folder, 3, "part", start=start, **OPTIONS)
    finally:
        loop._Loop.epoch = original


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, tmp_path), nprocs=2)
    _, history = run(tmp_path, 3, "one", **OPTIONS)
    found = json.loads((tmp_path / "history.json").read_text())
    assert len(found) == len(history) == 4
    for (loss, score), epoch in zip(found, history, strict=True):
        # Sums in another order; a rounding that falls to the other side moves a loss by 1e-4.
        assert loss == (None if epoch.loss is None else pytest.approx(epoch.loss, rel=1e-3))
        assert score == pytest.approx(epoch.score, abs=2)  # one of 60 samples


def test_a_half_told_group_is_refused(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.expected() == (0, 1) and distributed.count() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="WORLD_SIZE=2, but not RANK"):
        distributed.expected()
