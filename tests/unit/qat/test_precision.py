"""Training in bfloat16: grids see float32, and the file is what validation judged."""

import numpy as np
import pytest
import torch
from models import cpu, feeds_for
from models import run as run_file
from test_fake_quant_model import normed_net, planned
from test_trainer import run

from qtool.emitters import emit_qdq
from qtool.errors import RecipeError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.training.checks import check_early
from qtool.qat.fake_quant_model import QatNetwork, to_float32
from qtool.qat.quantizers import lsq
from qtool.qat.quantizers.lsq import LSQ
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.recipe.loader import load_recipe
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation


def test_grids_and_norms_see_float32_and_products_do_not(monkeypatch):
    seen, products = [], []
    original = lsq.learned_step

    def watched(x, scale, *rest, **options):
        seen.append((x.dtype, scale.dtype))
        return original(x, scale, *rest, **options)

    monkeypatch.setattr(lsq, "learned_step", watched)
    model, plan = planned(normed_net(), Bits(3, 4))
    network = QatNetwork(model, plan, LSQ(), "live").train()
    for norm in network.norms.values():
        norm.register_forward_pre_hook(lambda module, given: seen.append((given[0].dtype,) * 2))
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr(
        torch.nn.functional,
        "conv2d",
        lambda *a, **k: products.append(convolve(*a, **k)) or products[-1],
    )
    feeds = {k: torch.from_numpy(v) for k, v in feeds_for(model, rows=8).items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = network(feeds)["y"]
        taught = Executor(model)(feeds, to_float32, ["y"])["y"]
    assert out.dtype == taught.dtype == torch.float32
    assert len(seen) > 6 and {t for pair in seen for t in pair} == {torch.float32}
    assert {p.dtype for p in products} <= {torch.bfloat16}
    exact = network(feeds)["y"]
    assert not torch.equal(out, exact)  # products were bfloat16 indeed
    out.square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_it_trains_and_the_file_is_what_was_trained(tmp_path):
    network, history = run(tmp_path, 6, precision="bfloat16")
    _, exact = run(tmp_path, 6, "exact")
    assert max(e.score for e in history) > history[0].score + 20
    assert history[0].score == exact[0].score  # validation is float32
    losses = [[e.loss for e in found[1:]] for found in (history, exact)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.2)
    model, _ = planned(normed_net(), Bits(3, 4))
    learned, feeds = freeze(model, network.freeze()), feeds_for(model, rows=16)
    with torch.no_grad():
        want = network({k: torch.from_numpy(v) for k, v in feeds.items()})["y"]
    bound = 1e-3 * float(want.abs().max())  # biases and products round in another order
    simulated = Simulation(model, learned)(feeds, ["y"])["y"]
    torch.testing.assert_close(want, simulated, rtol=0, atol=bound)
    emitted = run_file(emit_qdq(model, learned, cpu()), feeds)["y"]
    np.testing.assert_allclose(emitted, simulated, atol=bound)


def test_a_device_without_bfloat16_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    (tmp_path / "r.yaml").write_text(
        "{model: net.onnx, calibrate: {images: train}, qat: {images: train, precision: bfloat16}}"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    check_early(recipe, RunOptions())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old One")
    with pytest.raises(RecipeError, match=r"qat\.precision.*Old One does not compute.*float32"):
        check_early(recipe, RunOptions(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    check_early(recipe, RunOptions(device="cuda"))
