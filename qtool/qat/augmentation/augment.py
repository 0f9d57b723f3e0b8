"""Random changes of training images, from torch alone; crops and mirrors are here."""

import torch
import torch.nn.functional as F

from qtool.qat.augmentation.color_jitter import jittered
from qtool.qat.augmentation.mixup import Pairs, mixed, partners
from qtool.qat.settings import Settings

T = torch.Tensor


def augmented(
    feeds: dict[str, T],
    labels: T | None,
    settings: Settings,
    random: torch.Generator,
    part: tuple[int, slice],
) -> tuple[dict[str, T], T | Pairs | None]:
    """One batch as training sees it: colours, crops and mirrors, then pairs.

    Args:
        feeds: inputs by name, on the CPU; where anything is to change, one input [N, C, H, W].
        labels: class numbers [N], or None.
        settings: what to change.
        random: the source of every choice.
        part: as for :func:`moved`.
    """
    if settings.colour:
        colour = (settings.colour, settings.pixels, random, part)
        feeds = {k: jittered(v, *colour) for k, v in feeds.items()}
    if settings.crop or settings.flip:
        how = (settings.crop, settings.flip, torch.tensor(settings.fill), random)
        feeds = {k: moved(v, *how, part) for k, v in feeds.items()}
    if not (settings.mixup or settings.cutmix):
        return feeds, labels
    ((name, images),) = feeds.items()
    images, own = mixed(images, settings.mixup, settings.cutmix, random, part)
    return {name: images}, None if labels is None else Pairs(labels, partners(labels), own)


def moved(
    images: T,
    crop: int,
    flip: bool,
    fill: T | float,
    random: torch.Generator,
    part: tuple[int, slice] | None = None,
) -> T:
    """Shift every image by up to ``crop`` pixels and mirror every second one, at random.

    Args:
        images: [N, C, H, W], on the CPU.
        crop: pixels added on each side, of which a window of the old size is kept; 0: none.
        flip: mirror left and right.
        fill: value of the added pixels, one number or one per channel [C] (black).
        random: the source of every choice.
        part: where the images are a part of a batch: its size, and which of its rows they are.
            Choices are drawn for the whole batch, and are the same whoever has which part.
    """
    n, _, h, w = images.shape
    total, mine = part or (n, slice(None))
    if crop:
        black = torch.as_tensor(fill, dtype=images.dtype).reshape(1, -1, 1, 1)
        padded = F.pad(images - black, (crop,) * 4) + black
        at = torch.randint(0, 2 * crop + 1, (2, total), generator=random)[:, mine]
        rows, columns = (
            a[:, None] + torch.arange(size) for a, size in zip(at, (h, w), strict=True)
        )
        images = padded[
            torch.arange(n)[:, None, None, None],
            torch.arange(images.shape[1])[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
    if flip:
        mirrored = torch.rand(total, generator=random)[mine] < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images
