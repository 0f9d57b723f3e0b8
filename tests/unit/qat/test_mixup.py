"""mixup and CutMix: known answers, shares that are those of the pixels, and both in training."""

import pytest
import torch
import torch.nn.functional as F
from test_trainer import run

import qtool.qat.trainer as loop
from qtool.qat.augmentation.mixup import LabelPairs, mix_images, partners
from qtool.qat.distributed import BatchPart
from qtool.recipe.sections.qat import Augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, dtype=torch.float32) -> torch.Tensor:
    """Images [N, 2, 6, 9] of one value each: their number."""
    return torch.arange(count).to(dtype)[:, None, None, None].expand(count, 2, 6, 9).contiguous()


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.3, 0.2)])
def test_shares_are_those_of_the_pixels(mixup, cutmix):
    images = numbered(400)
    out, share = mix_images(images, mixup, cutmix, generator())
    other = partners(images)
    assert torch.equal(other, images.roll(1, 0)) and ((share >= 0) & (share <= 1)).all()
    wanted = share[:, None] * images.mean((2, 3)) + (1 - share[:, None]) * other.mean((2, 3))
    torch.testing.assert_close(out.mean((2, 3)), wanted, atol=1e-3, rtol=1e-4)
    values = torch.tensor([len(set(image[0].flatten().tolist())) for image in out])
    whole = (out == images).all(3).all(2).all(1)
    boxed, blended = values == 2, (values == 1) & ~whole
    # A box can cover nothing or all; three standard deviations of 400 draws are 0.075.
    assert abs(float(blended.float().mean()) - mixup) < 0.12
    assert cutmix - 0.25 < float(boxed.float().mean()) <= cutmix + 0.075
    if mixup + cutmix == 1:
        assert abs(float(share.mean()) - (0.5 if mixup else 0.6)) < 0.12
    assert ((out == images) | (out == other) | blended[:, None, None, None]).all()


def test_a_box_is_one_rectangle():
    out, share = mix_images(numbered(200), 0.0, 1.0, generator())
    for image, number, own in zip(out[:, 0], range(200), share, strict=True):
        rows, columns = torch.nonzero(image != number, as_tuple=True)
        if len(rows):
            area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert area == len(rows) and float(own) == pytest.approx(1 - len(rows) / 54, abs=1e-6)


def test_nothing_asked_for_changes_nothing_and_whole_numbers_stay_whole():
    images = numbered(8)
    out, share = mix_images(images, 0.0, 0.0, generator())
    assert torch.equal(out, images) and (share == 1).all()
    out, share = mix_images(numbered(8, torch.uint8) * 20, 1.0, 0.0, generator())
    assert out.dtype == torch.uint8
    wanted = (numbered(8) * 20, numbered(8).roll(1, 0) * 20)
    blend = torch.lerp(wanted[1], wanted[0], share[:, None, None, None])
    assert (out.float() - blend).abs().max() <= 0.5


def test_whoever_has_which_rows_draws_the_same():
    images = numbered(10)
    _, whole = mix_images(images, 0.5, 0.5, generator())
    _, part = mix_images(images[1::2], 0.5, 0.5, generator(), BatchPart(10, 1, 2))
    torch.testing.assert_close(part, whole[1::2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_pair_is_that_of_its_soft_label(smoothing):
    out = torch.randn(6, 5, generator=generator())
    first, second = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([4, 1, 0, 2, 2, 1])
    share = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0, 0.9])
    hot = [F.one_hot(labels, 5).float() for labels in (first, second)]
    soft = share[:, None] * hot[0] + (1 - share[:, None]) * hot[1]
    found = LabelPairs(first, second, share).cross_entropy(out, smoothing)
    assert (
        LabelPairs(first, second, share).cross_entropy(out.half(), smoothing).dtype == torch.float16
    )
    torch.testing.assert_close(found, F.cross_entropy(out, soft, label_smoothing=smoothing))


def test_more_than_all_images_cannot_be_mix_images():
    with pytest.raises(ValueError, match=r"1\.1 of the images together, expected at most 1"):
        Augment(mixup=0.5, cutmix=0.6)


@pytest.mark.parametrize("labelled", [True, False])
def test_it_trains_on_pairs_and_goes_on_where_it_stopped(labelled, tmp_path, monkeypatch):
    options = {"mixup": 0.3, "cutmix": 0.3, "labelled": labelled, "crop": 1}
    whole, history = run(tmp_path, 4, "whole", **options)
    assert history[4].loss < history[1].loss
    _, plain = run(tmp_path, 2, "plain", **options | {"mixup": 0.0, "cutmix": 0.0})
    assert plain[1].loss != history[1].loss
    saves, save = [], loop._Loop.save

    def stops(self, path):
        save(self, path)
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(loop._Loop, "save", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 4, "part", **options)
    resumed, again = run(tmp_path, 4, "part", **options)
    assert [(e.loss, e.score) for e in again] == [(e.loss, e.score) for e in history]
    a, b = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_image_alone_stays_as_it_is():
    images = numbered(1)
    out, _ = mix_images(images, 0.5, 0.5, generator())
    assert torch.equal(out, images)
