"""Random changes of training images with torch alone; crops and flips are here."""

import torch
import torch.nn.functional as F

from qtool.qat.augmentation.color_jitter import jitter_colors
from qtool.qat.augmentation.mixup import LabelPairs, mix_images, partners
from qtool.qat.distributed import BatchPart
from qtool.qat.settings import Settings

T = torch.Tensor


def augment(
    feeds: dict[str, T],
    labels: T | None,
    settings: Settings,
    generator: torch.Generator,
    part: BatchPart,
) -> tuple[dict[str, T], T | LabelPairs | None]:
    """Apply color jitter, crops and flips, then mixup and CutMix to one training batch.

    Args:
        feeds: inputs by name, on the CPU; where anything is to change, one input [N, C, H, W].
        labels: class numbers [N], or None.
        settings: with the changes and their strengths.
        generator: source of every choice.
        part: the rows of the batch that ``feeds`` are.
    """
    if settings.colour:
        feeds = {
            name: jitter_colors(images, settings.colour, settings.pixels, generator, part)
            for name, images in feeds.items()
        }
    if settings.crop or settings.flip:
        fill = torch.tensor(settings.fill)
        feeds = {
            name: random_crop_flip(images, settings.crop, settings.flip, fill, generator, part)
            for name, images in feeds.items()
        }
    if not (settings.mixup or settings.cutmix):
        return feeds, labels
    ((name, images),) = feeds.items()
    images, own = mix_images(images, settings.mixup, settings.cutmix, generator, part)
    return {name: images}, None if labels is None else LabelPairs(labels, partners(labels), own)


def random_crop_flip(
    images: T,
    crop: int,
    flip: bool,
    fill: T | float,
    generator: torch.Generator,
    part: BatchPart | None = None,
) -> T:
    """Shift every image by up to ``crop`` pixels and mirror every second one, at random.

    Args:
        images: [N, C, H, W], on the CPU.
        crop: pixels added on each side before a window of the old size is cut out; 0: none.
        flip: mirror left and right.
        fill: value of the added pixels (black), one number or one per channel [C].
        generator: source of every choice.
        part: the rows of a batch that ``images`` are; None: all. Choices are drawn for the whole
            batch, so they do not depend on how processes share it.
    """
    n, _, h, w = images.shape
    part = part or BatchPart(n)
    if crop:
        black = torch.as_tensor(fill, dtype=images.dtype).reshape(1, -1, 1, 1)
        # Less black first: F.pad fills with 0 alone.
        padded = F.pad(images - black, (crop, crop, crop, crop)) + black
        corners = part.of(torch.randint(0, 2 * crop + 1, (2, part.size), generator=generator))
        rows, columns = (
            corner[:, None] + torch.arange(size)
            for corner, size in zip(corners, (h, w), strict=True)
        )
        images = padded[
            torch.arange(n)[:, None, None, None],
            torch.arange(images.shape[1])[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
    if flip:
        mirrored = part.of(torch.rand(part.size, generator=generator)) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images
