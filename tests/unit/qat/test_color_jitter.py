"""Changes of colour: known answers, and nothing drawn where none are asked for."""

import numpy as np
import pytest
import torch
from test_trainer import run

from qtool.pipeline.training.settings import LUMA
from qtool.qat.augmentation.color_jitter import jitter_colors
from qtool.qat.distributed import BatchPart
from qtool.qat.settings import Pixels

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
PIXELS = Pixels(
    tuple(1 / s for s in STD), tuple(-m / s for m, s in zip(MEAN, STD, strict=True)), LUMA
)
PLAIN = Pixels((1.0,), (0.0,), LUMA)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalized(p: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (p - mean) / std


def drawn(monkeypatch, *shares: float) -> None:
    """What the generator gives for brightness, contrast and saturation; 0.5 is no change."""
    values = torch.tensor(shares).reshape(3, 1)
    monkeypatch.setattr(
        "qtool.qat.augmentation.color_jitter.torch.rand",
        lambda shape, generator: values.expand(shape),
    )


def test_strength_0_changes_nothing():
    images = normalized(torch.rand(4, 3, 5, 5, generator=generator()))
    torch.testing.assert_close(jitter_colors(images, 0.0, PIXELS, generator()), images)


@pytest.mark.parametrize(
    ("shares", "want"),
    [
        ((1.0, 0.5, 0.5), [[0.3, 0.3], [0.6, 0.9], [0.9, 1.0]]),  # times 1.5, cut off at 1
        ((0.0, 0.5, 0.5), [[0.1, 0.1], [0.2, 0.3], [0.3, 0.4]]),  # times 0.5
    ],
)
def test_known_brightness(monkeypatch, shares, want):
    drawn(monkeypatch, *shares)
    p = torch.tensor([[0.2, 0.2], [0.4, 0.6], [0.6, 0.8]]).reshape(1, 3, 1, 2)
    out = jitter_colors(p, 0.5, PLAIN, generator())
    torch.testing.assert_close(out, torch.tensor(want).reshape(1, 3, 1, 2))
    there = jitter_colors(normalized(p), 0.5, PIXELS, generator())  # undone, changed and redone
    torch.testing.assert_close(there, normalized(out))


def test_known_contrast(monkeypatch):
    drawn(monkeypatch, 0.5, 0.0, 0.5)
    p = torch.tensor([0.2, 0.6]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    out = jitter_colors(p, 0.5, PLAIN, generator())
    want = torch.tensor([0.3, 0.5]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)  # halfway to 0.4
    torch.testing.assert_close(out, want)


def test_known_saturation(monkeypatch):
    same = torch.rand(2, 1, 4, 4, generator=generator()).expand(2, 3, 4, 4)
    drawn(monkeypatch, 0.5, 0.5, 0.0)
    p = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    gray = 0.299
    want = torch.tensor([(1 + gray) / 2, gray / 2, gray / 2]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(jitter_colors(p, 0.5, PLAIN, generator()), want)
    torch.testing.assert_close(jitter_colors(same, 0.5, PLAIN, generator()), same)
    one = Pixels((1.0,), (0.0,), (1.0,))
    torch.testing.assert_close(jitter_colors(same[:, :1], 0.5, one, generator()), same[:, :1])


def test_every_image_has_factors_of_its_own_whoever_has_it():
    images = torch.rand(6, 3, 4, 4, generator=generator())
    whole = jitter_colors(images, 0.4, PLAIN, generator(1))
    assert whole.min() >= 0 and whole.max() <= 1
    ratios = (whole / images).mean((1, 2, 3))
    assert len(set(ratios.tolist())) == 6
    mine = slice(1, None, 2)
    torch.testing.assert_close(
        jitter_colors(images[mine], 0.4, PLAIN, generator(1), BatchPart(6, 1, 2)), whole[mine]
    )


def test_bytes_stay_bytes():
    images = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8, generator=generator())
    pixels = Pixels((255.0,) * 3, (0.0,) * 3, LUMA)
    assert torch.equal(jitter_colors(images, 0.0, pixels, generator()), images)
    out = jitter_colors(images, 0.5, pixels, generator())
    assert out.dtype == torch.uint8 and not torch.equal(out, images)


def test_training_draws_for_it_only_where_it_is_asked_for(tmp_path):
    losses = {}
    for name, options in (
        ("never", {}),
        ("off", {"colour": 0.0, "pixels": PIXELS}),
        ("on", {"colour": 0.5, "pixels": PIXELS}),
    ):
        _, history = run(tmp_path, 2, name, crop=1, flip=True, **options)
        losses[name] = [epoch.loss for epoch in history]
    assert losses["never"] == losses["off"] != losses["on"]
    assert np.isfinite(losses["on"][1:]).all()
