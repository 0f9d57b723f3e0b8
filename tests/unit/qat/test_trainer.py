"""The training loop: it learns, resumes to the last bit, and keeps the best it has seen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import feeds_for
from test_fake_quant_model import normed_net, planned

import qtool.qat.trainer as loop
from qtool.data import Dataset
from qtool.errors import DataError, RecipeError
from qtool.pipeline.training.stage import warnings_of
from qtool.progress import silent
from qtool.qat.augmentation.augment import random_crop_flip
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.loss import Loss, distillation
from qtool.qat.optimizer import build_optimizer, default_clip, rates
from qtool.qat.quantizers.gradual import Regularization
from qtool.qat.quantizers.lsq import LSQ
from qtool.qat.quantizers.nonuniform import KMeansCentroids
from qtool.qat.quantizers.ste import STE
from qtool.qat.settings import Epoch, Oscillation, RunFiles, Settings
from qtool.qat.trainable_module import TrainableModule
from qtool.qat.trainer import train
from qtool.quant.bit_widths import Bits
from qtool.runtime.executor import Executor


class Rows:
    """Arrays as a dataset's source."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def stream(self, positions, size):
        for at in range(0, len(positions), size):
            yield {"x": self.x[list(positions[at : at + size])]}

    def digest(self, position):
        return str(position)


def dataset(count: int, seed: int, labelled: bool = True) -> Dataset:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    x = rng.normal(0, 0.5, (count, 3, 8, 8)).astype(np.float32)
    x[np.arange(count), labels % 3, labels] += 3  # a class is a bright row of one channel
    names = tuple(map(str, range(count)))
    return Dataset(names, Rows(x), tuple(range(count)), labels if labelled else None)


def run(
    tmp_path,
    epochs: int,
    name="a",
    labelled=True,
    batchnorm="live",
    quantizer=None,
    board=None,
    start=None,
    **options,
):
    model, plan = start or planned(normed_net(), Bits(3, 4))
    network = QatNetwork(model, plan, quantizer or LSQ(), batchnorm)
    executor = Executor(model)
    settings = Settings(
        **{"epochs": epochs, "batch": 32, "lr": 0.02, "teacher": 0.0 if labelled else 1.0} | options
    )
    history, _ = train(
        network,
        lambda feeds, names: executor(feeds, None, names),
        dataset(200, 0, labelled),
        dataset(60, 1, labelled),
        settings,
        RunFiles(tmp_path / name, board),
    )
    return network, history


def test_it_learns_and_ends_with_the_best_epoch(tmp_path):
    network, history = run(tmp_path, 6)
    assert [e.number for e in history] == list(range(7)) and history[0].loss is None
    assert max(e.score for e in history) > history[0].score + 20
    losses = [e.loss for e in history[1:]]
    assert losses[-1] < losses[0]
    assert not network.training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw"},
        {"ema": 0.9, "oscillation": Oscillation(dampen=0.01, freeze=0.02, momentum=0.1)},
        {"ema": 0.9, "oscillation": Oscillation(freeze=0.02), "quantizer": STE(ranges="ema")},
    ],
    ids=["sgd", "adamw", "steadied", "following"],
)
def test_a_stopped_run_ends_like_one_that_was_not(options, tmp_path):
    options = {"crop": 1, "flip": True, "warmup": 1.0, "mixup": 0.2, "cutmix": 0.2} | options
    whole, history = run(tmp_path, 4, "whole", **options)
    # Killed during the third epoch: what is left is the checkpoint of the second.
    saved = []
    original = loop._Loop.save

    def save(self, path):
        original(self, path)
        saved.append(path.read_bytes())
        if len(saved) == 3:
            raise KeyboardInterrupt

    loop._Loop.save = save
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 4, "part", **options)
    finally:
        loop._Loop.save = original
    resumed, again = run(tmp_path, 4, "part", **options)
    assert [replace(e, seconds=0) for e in again] == [replace(e, seconds=0) for e in history]
    a, b = whole.state_dict(), resumed.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path):
    _, two = run(tmp_path, 2)
    _, four = run(tmp_path, 4)
    assert [e.score for e in four[:3]] == [e.score for e in two] and len(four) == 5
    with pytest.raises(RecipeError, match="found 4 epochs in the checkpoint"):
        run(tmp_path, 1)


def test_the_bits_of_grids_follow_training(tmp_path, monkeypatch):
    """Grids of 4 bits of which 3 are requested: the last extra bit goes in the first half."""
    bits, step = [], loop._Loop._step

    def observed(self, *args):
        result = step(self, *args)
        bits.append({module.finer for module in self.network.weight_grids.values()})
        return result

    monkeypatch.setattr(loop._Loop, "_step", observed)
    run(tmp_path, 4, extra_bits=1)
    assert bits == [{2}] * (len(bits) // 2) + [{1}] * (len(bits) // 2)


def test_the_penalty_of_a_quantizer_is_part_of_the_loss(tmp_path):
    """The exponent o has no other gradient than that of e^o R - o."""
    network, _ = run(tmp_path, 1, quantizer=Regularization())
    exponents = [module.exponent.item() for module in network.weight_grids.values()]
    assert min(exponents) > 0.01  # all start at 0


def test_centroids_learn_at_the_rate_of_weights_and_scales_at_their_own():
    model, plan = planned(normed_net(), Bits(3, 4))
    network = QatNetwork(model, plan, KMeansCentroids(), "live")
    settings = Settings(epochs=2, batch=4, lr=0.1, scale_lr=0.001)
    optimizer = build_optimizer(network, settings)
    rate_of = {
        id(parameter): rate
        for group, rate in zip(optimizer.param_groups, rates(settings, 1), strict=True)
        for parameter in group["params"]
    }
    listed = {id(p) for p in TrainableModule(network, ("x",), lambda plan: plan).scales()}
    assert listed == {id(m.scale) for m in network.activation_grids.values()}
    top = rates(settings, 1)[0]
    for module in network.weight_grids.values():
        assert rate_of[id(module.centroids)] == top
    for module in network.activation_grids.values():
        assert rate_of[id(module.scale)] == pytest.approx(top / 100)


def test_without_labels_the_float_network_teaches(tmp_path):
    network, history = run(tmp_path, 8, labelled=False, lr=0.003, batchnorm="frozen")
    assert max(e.score for e in history) > history[0].score  # minus the loss: larger is better
    assert all(e.score <= 0 for e in history)
    with pytest.raises(DataError, match="one class number per sample"):
        run(tmp_path, 1, "b", labelled=False, teacher=0.5)
    assert network.norms


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [((50, 60, 40, 40), 2), ((50, 60, 40, 55), 4), ((50, np.nan, 60, 60), 0)],
    ids=["worse than before", "better than before", "no number"],
)
def test_a_loss_that_rises_stops_with_the_best_plan(scores, epochs, tmp_path, monkeypatch):
    losses = {1: 1.0, 2: 1.9, 3: 2.1, 4: 2.0}  # the third is more than twice the first
    found = iter((*scores, 70, 70, 70))
    monkeypatch.setattr(loop._Loop, "_train_one", lambda self, number: losses[number])
    monkeypatch.setattr(loop._Loop, "_evaluate", lambda self: next(found))
    _, history = run(tmp_path, 4)
    assert [e.number for e in history] == list(range(epochs + 1))


def test_a_loss_that_rises_while_masks_grow_stops_nothing(tmp_path, monkeypatch):
    """It is compared with that of the first epoch in which all weights are pruned."""
    losses = {1: 0.2, 2: 0.7, 3: 0.9, 4: 0.6, 5: 1.9}  # pruned from the third on
    found = iter((90, 90, 80, 85, 89, *[70] * 9))

    class Masks:
        epochs = 2

        def __call__(self, weights, share):
            return {}

    monkeypatch.setattr(loop._Loop, "_train_one", lambda self, number: losses[number])
    monkeypatch.setattr(loop._Loop, "_evaluate", lambda self: next(found))
    _, history = run(tmp_path, 5, pruning=Masks())
    assert [e.number for e in history] == [0, 1, 2, 3, 4]  # 1.9 is more than twice 0.9


def test_a_plan_that_gives_no_numbers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop._Loop, "_evaluate", lambda self: float("nan"))
    with pytest.raises(DataError, match="gives no numbers"):
        run(tmp_path, 1)


@pytest.mark.parametrize(("batchnorm", "want"), [("live", 0), ("frozen", 1), ("folded", 1)])
def test_gradients_are_clipped_where_no_batchnorm_holds_them(batchnorm, want):
    model, plan = planned(normed_net(), Bits(3, 4))
    assert default_clip(QatNetwork(model, plan, LSQ(), batchnorm)) == want


@pytest.mark.parametrize(("clip", "far"), [(0.0, True), (None, False), (0.01, False)])
def test_one_step_moves_no_further_than_rate_times_clip(clip, far, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "best_epoch", lambda history: history[-1].number)
    options = {"batchnorm": "folded", "weight_decay": 0.0, "batch": 190, "scale_lr": 0.0}
    start, _ = run(tmp_path, 1, "start", lr=1e-12, **options)
    moved, _ = run(tmp_path, 1, "moved", lr=0.01, clip=clip, **options)
    pairs = zip(start.parameters(), moved.parameters(), strict=True)
    distance = float(torch.cat([(b - a).detach().ravel() for a, b in pairs]).norm())
    # Nesterov's first step is 1.9 times the gradient.
    assert (distance > 1.9 * 0.01 * (clip or 1.0) * 1.001) == far


def test_what_a_training_in_vain_says():
    def history(*scores):
        return [Epoch(k, 1.0 if k else None, score, 1.0) for k, score in enumerate(scores)]

    assert warnings_of(history(10.0, 20.0, 15.0), 2) == []
    assert warnings_of(history(10.0, 10.0), 1) == []  # of equals the later one is kept
    for scores, epochs in (((20.0, 15.0, 10.0), 2), ((20.0, 30.0), 4)):
        (said,) = warnings_of(history(*scores), epochs)
        assert said.startswith("WARNING") and "equalize" in said
    assert "(20.00 on the held-out" in warnings_of(history(20.0, 15.0), 1)[0]
    assert "epoch 2 is no number" in warnings_of(history(20.0, 30.0), 4)[0]


@pytest.mark.parametrize(
    ("float_score", "samples", "advised"),
    [(90.0, 100, True), (64.9, 100, False), (None, 100, False), (90.0, 6, False), (95, 6, True)],
)
def test_a_network_that_stays_far_below_the_float_one_calls_for_advice(
    float_score, samples, advised
):
    history = [Epoch(k, 1.0, score, 1.0) for k, score in enumerate((10.0, 60.0, 55.0))]
    said = warnings_of(history, 2, float_score, samples)
    assert len(said) == advised
    if advised:
        wanted = f"60.00 on the held-out samples, the float network {float_score:.2f}"
        assert wanted in said[0]
        assert "equalize" in said[0]


@pytest.mark.parametrize("labelled", [True, False])
def test_the_float_network_is_judged_on_the_same_samples(labelled):
    model, plan = planned(normed_net(), Bits(3, 4))
    executor, held = Executor(model), dataset(50, 1, labelled)
    found = loop._Loop(
        QatNetwork(model, plan, LSQ()),
        lambda feeds, names: executor(feeds, None, names),
        dataset(64, 0, labelled),
        held,
        Settings(epochs=1, batch=32, fixed=True, teacher=0.0 if labelled else 1.0),
        silent,
    ).evaluate_float()
    if not labelled:
        assert found is None
        return
    feeds = {"x": torch.from_numpy(held.source.x)}
    out = executor(feeds, None, ["y"])["y"].numpy()
    assert found == pytest.approx(100 * (out.argmax(1) == held.labels).mean())


def test_a_loss_that_is_no_number_stops_with_the_best_plan(tmp_path):
    network, history = run(tmp_path, 5, lr=1e30, batchnorm="folded")
    assert len(history) < 6
    assert all(e.loss is None or np.isfinite(e.loss) for e in history)
    feeds = feeds_for(planned(normed_net(), Bits(3, 4))[0])
    with torch.no_grad():
        out = network({k: torch.from_numpy(v) for k, v in feeds.items()})["y"]
    assert torch.isfinite(out).all()


def test_rates_rise_then_fall_along_a_cosine():
    settings = Settings(epochs=10, lr=0.1, warmup=2)
    found = [rates(settings, e)[0] for e in (0, 1, 2, 6, 10)]
    assert found[0] < 1e-3 and found[1] == pytest.approx(0.05, rel=1e-2)
    assert found[2:] == pytest.approx([0.1, 0.05, 0.0], abs=1e-9)
    assert rates(settings, 2)[2] == pytest.approx(0.001)
    assert rates(Settings(epochs=10, lr=0.1, scale_lr=0.02), 0)[2] == pytest.approx(0.02)


def test_distillation_has_its_known_answers():
    out = torch.randn(6, 5, requires_grad=True)
    same = distillation(out, out.detach(), 1.0)
    same.backward()
    assert abs(same.item()) < 1e-6 and out.grad.abs().max() < 1e-6
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p, q = torch.softmax(a, 1), torch.tensor([[0.5, 0.5]])
    want = float((q * (q / p).log()).sum())
    assert distillation(a, b, 1.0).item() == pytest.approx(want, rel=1e-5)
    assert distillation(torch.ones(2, 1), torch.zeros(2, 1), 1.0).item() == 1.0


def test_crops_and_mirrors_only_move_pixels():
    random = torch.Generator().manual_seed(0)
    images = torch.arange(4 * 2 * 6 * 6, dtype=torch.float32).reshape(4, 2, 6, 6) + 1
    fill = torch.tensor([-1.0, -2.0])
    out = random_crop_flip(images, 2, True, fill, random)
    assert out.shape == images.shape
    for image, source in zip(out, images, strict=True):
        for channel, black in ((0, -1.0), (1, -2.0)):
            seen, known = (
                set(image[channel].flatten().tolist()),
                set(source[channel].flatten().tolist()),
            )
            assert seen <= known | {black}
    assert torch.equal(random_crop_flip(images, 0, False, 0.0, random), images)
    flipped = random_crop_flip(images, 0, True, 0.0, torch.Generator().manual_seed(1))
    for image, source in zip(flipped, images, strict=True):
        assert torch.equal(image, source) or torch.equal(image, source.flip(2))


def test_a_softmax_at_the_end_is_taken_back():
    out = torch.randn(6, 5)
    network = SimpleNamespace(compared="y")
    scores = Loss(network, None, Settings(epochs=1, probabilities=True)).scores(
        torch.softmax(out, 1)
    )
    torch.testing.assert_close(torch.softmax(scores, 1), torch.softmax(out, 1))
    assert torch.equal(Loss(network, None, Settings(epochs=1)).scores(out), out)
