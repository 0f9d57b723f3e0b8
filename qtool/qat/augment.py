"""Random crops and mirrors of image batches, from torch alone."""

import torch
import torch.nn.functional as F

T = torch.Tensor


def augmented(
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
