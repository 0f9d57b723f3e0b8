"""Mixing of training images: blend two (mixup), or paste a box of one into the other (CutMix).

A teacher's scores of mixed images carry more information than those of the images it was trained
on, of which it is sure; and few images become many.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qtool.qat.distributed import BatchPart

T = torch.Tensor


@dataclass(frozen=True)
class LabelPairs:
    """Class numbers of mixed images.

    Attributes:
        first: of the image itself, int64 [N].
        second: of its partner, int64 [N].
        share: of the first image, 0 to 1, [N].
    """

    first: T
    second: T
    share: T

    def cross_entropy(self, out: T, smoothing: float) -> T:
        """Return the mean of share * CE(first) + (1 - share) * CE(second), rank 0.

        Args:
            out: scores [N, C].
            smoothing: label smoothing, 0 to 1.
        """
        first, second = (
            F.cross_entropy(out, labels, reduction="none", label_smoothing=smoothing)
            for labels in (self.first, self.second)
        )
        return torch.lerp(second, first, self.share.to(out.dtype)).mean()

    def to(self, device: torch.device) -> "LabelPairs":
        """Return the same on another device."""
        return LabelPairs(self.first.to(device), self.second.to(device), self.share.to(device))


def partners(rows: T) -> T:
    """Return the partner of every row: the row before it, as the order is random already."""
    return rows.roll(1, 0)


def mix_images(
    images: T,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
    part: BatchPart | None = None,
) -> tuple[T, T]:
    """Mix some images with their partners.

    mixup: share * image + (1 - share) * partner, with a share drawn evenly from 0 to 1. CutMix: a
    box of the partner that covers 1 - share of the image, clipped at its borders. Partners are of
    the same process.

    Args:
        images: [N, C, H, W], on the CPU.
        mixup: probability that an image is blended.
        cutmix: probability that an image gets a box; the sum of both is at most 1.
        generator: source of every choice.
        part: as for :func:`qtool.qat.augmentation.augment.random_crop_flip`.

    Returns:
        The images, and the share of each image in its mixture [N].
    Source: Zhang et al. 2018, "mixup", arXiv:1710.09412; Yun et al. 2019, "CutMix", sec. 3,
        arXiv:1905.04899; both with alpha = 1. With a teacher: Beyer et al. 2022, "Knowledge
        distillation: A good teacher is patient and consistent", arXiv:2106.05237.
    """
    part = part or BatchPart(len(images))
    choice, share, row, column = part.of(torch.rand((4, part.size), generator=generator))
    blended, boxed = choice < mixup, (choice >= mixup) & (choice < mixup + cutmix)
    inside = _boxes(images.shape[2:], 1 - share, row, column)
    # A box that is clipped covers less than it was drawn for.
    share = torch.where(boxed, 1 - inside.float().mean((1, 2)), share)
    share = torch.where(blended | boxed, share, 1.0)
    own = torch.where(boxed[:, None, None], (~inside).float(), share[:, None, None])[:, None]
    result = torch.lerp(partners(images).float(), images.float(), own)
    return (result if images.is_floating_point() else result.round()).to(images.dtype), share


def _boxes(size: torch.Size, area: T, row: T, column: T) -> T:
    """Return boxes as masks [N, H, W], from areas and centres between 0 and 1, each [N]."""
    masks = []
    for length, centre in zip(size, (row, column), strict=True):
        half = area.sqrt() / 2
        at = (torch.arange(length) + 0.5) / length
        masks.append((at - centre[:, None]).abs() < half[:, None])
    rows, columns = masks
    return rows[:, :, None] & columns[:, None, :]
