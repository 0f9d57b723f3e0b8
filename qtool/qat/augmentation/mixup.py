"""Two training images become one: blended (mixup), or a box of one in the other (CutMix).

Between the images it was trained on the float network is least sure of itself, so a teacher says
more there; and few images become many.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

T = torch.Tensor


@dataclass(frozen=True)
class Pairs:
    """Class numbers of mixed images.

    Attributes:
        first, second: of both images, int64 [N].
        share: of the first one, 0 to 1, [N].
    """

    first: T
    second: T
    share: T

    def cross_entropy(self, out: T, smoothing: float) -> T:
        """Of scores [N, C] with both classes, each by its share; mean, rank 0."""
        first, second = (
            F.cross_entropy(out, labels, reduction="none", label_smoothing=smoothing)
            for labels in (self.first, self.second)
        )
        return torch.lerp(second, first, self.share.to(out.dtype)).mean()

    def to(self, device: torch.device) -> "Pairs":
        """The same on another device."""
        return Pairs(self.first.to(device), self.second.to(device), self.share.to(device))


def partners(rows: T) -> T:
    """The other image, or class number, of every row; a batch has a random order already."""
    return rows.roll(1, 0)


def mixed(
    images: T,
    mixup: float,
    cutmix: float,
    random: torch.Generator,
    part: tuple[int, slice] | None = None,
) -> tuple[T, T]:
    """Mix some images with their partners: (images, the share of each in what became of it).

    An image is blended with a share drawn evenly from 0 to 1, or gets a box of its partner that
    covers such a share of it and is cut off at its borders. Partners are of the same process.

    Args:
        images: [N, C, H, W], on the CPU.
        mixup, cutmix: probabilities of both for an image; their sum is at most 1.
        random: the source of every choice.
        part: as for :func:`qtool.qat.augmentation.augment.moved`.
    Source: Zhang et al. 2018, "mixup", arXiv:1710.09412; Yun et al. 2019, "CutMix", sec. 3,
        arXiv:1905.04899; both with alpha = 1. With a teacher: Beyer et al. 2022, "Knowledge
        distillation: A good teacher is patient and consistent", arXiv:2106.05237.
    """
    total, mine = part or (len(images), slice(None))
    which, share, row, column = torch.rand((4, total), generator=random)[:, mine]
    blended, boxed = which < mixup, (which >= mixup) & (which < mixup + cutmix)
    inside = _boxes(images.shape[2:], 1 - share, row, column)
    share = torch.where(boxed, 1 - inside.float().mean((1, 2)), share)
    share = torch.where(blended | boxed, share, 1.0)
    own = torch.where(boxed[:, None, None], (~inside).float(), share[:, None, None])[:, None]
    result = torch.lerp(partners(images).float(), images.float(), own)
    return (result if images.is_floating_point() else result.round()).to(images.dtype), share


def _boxes(size: torch.Size, area: T, row: T, column: T) -> T:
    """Boxes of these areas around these centres, all between 0 and 1, as masks [N, H, W]."""
    masks = []
    for length, centre in zip(size, (row, column), strict=True):
        half = area.sqrt() / 2
        at = (torch.arange(length) + 0.5) / length
        masks.append((at - centre[:, None]).abs() < half[:, None])
    rows, columns = masks
    return rows[:, :, None] & columns[:, None, :]
