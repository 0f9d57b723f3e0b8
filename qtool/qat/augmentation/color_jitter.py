"""Random changes of brightness, contrast and saturation, with torch alone."""

import torch

from qtool.qat.distributed import BatchPart
from qtool.qat.settings import Pixels

T = torch.Tensor


def jitter_colors(
    images: T,
    strength: float,
    pixels: Pixels,
    generator: torch.Generator,
    part: BatchPart | None = None,
) -> T:
    """Change brightness, then contrast, then saturation of every image, each at random.

    Each change has a factor f between 1 - strength and 1 + strength: p f, m + f (p - m) with the
    image's mean gray m, and g + f (p - g) with each pixel's own gray g. Pixels are clipped to 0 and
    1 after every change. An image of one channel has no saturation.

    Args:
        images: [N, C, H, W], on the CPU, as the network takes them.
        strength: 0 (nothing changes) to 1.
        pixels: conversion of pixels of 0 to 1 to ``images``; undone first, applied again at the
            end.
        generator: source of every choice.
        part: as for :func:`qtool.qat.augmentation.augment.random_crop_flip`.
    Source: torchvision's ColorJitter without hue. Departure: one order for all images.
    """
    part = part or BatchPart(len(images))
    factors = 1 + strength * (2 * torch.rand((3, part.size), generator=generator) - 1)
    brightness, contrast, saturation = part.of(factors).reshape(3, -1, 1, 1, 1)
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
    """Return the gray [N, 1, H, W] of pixels [N, C, H, W]."""
    return (p * torch.tensor(luma).reshape(1, -1, 1, 1)).sum(1, keepdim=True)
