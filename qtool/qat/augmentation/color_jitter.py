"""Random changes of brightness, contrast and saturation, from torch alone."""

import torch

from qtool.qat.settings import Pixels

T = torch.Tensor


def jittered(
    images: T,
    strength: float,
    pixels: Pixels,
    random: torch.Generator,
    part: tuple[int, slice] | None = None,
) -> T:
    """Change brightness, then contrast, then saturation of every image, each at random.

    Each has a factor between 1 - strength and 1 + strength: of the pixels, of their distance from
    the image's mean gray, and of their distance from their own gray. Pixels are cut off at 0 and 1
    after every change. An image of one channel has no saturation.

    Args:
        images: [N, C, H, W], on the CPU, as the network takes them.
        strength: 0 (nothing changes) to 1.
        pixels: how pixels of 0 to 1 became ``images``; undone first and redone in the end.
        random: the source of every choice.
        part: as for :func:`qtool.qat.augmentation.augment.moved`.
    Source: torchvision's ColorJitter without hue. Departure: one order for all images.
    """
    total, mine = part or (len(images), slice(None))
    factors = 1 + strength * (2 * torch.rand((3, total), generator=random) - 1)
    brightness, contrast, saturation = factors[:, mine].reshape(3, -1, 1, 1, 1)
    scale, offset = (
        torch.tensor(values).reshape(1, -1, 1, 1) for values in (pixels.scale, pixels.offset)
    )
    p = ((images - offset) / scale * brightness).clamp(0, 1)
    middle = _gray(p, pixels.luma).mean((1, 2, 3), keepdim=True)
    p = (middle + contrast * (p - middle)).clamp(0, 1)
    if p.shape[1] > 1:
        gray = _gray(p, pixels.luma)
        p = (gray + saturation * (p - gray)).clamp(0, 1)
    changed = p * scale + offset
    return changed if images.is_floating_point() else changed.round().to(images.dtype)


def _gray(p: T, luma: tuple[float, ...]) -> T:
    """[N, 1, H, W]."""
    return (p * torch.tensor(luma).reshape(1, -1, 1, 1)).sum(1, keepdim=True)
