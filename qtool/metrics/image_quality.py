"""Metrics of images against target images: PSNR and SSIM."""

import numpy as np

from qtool.errors import DataError

MOST_DB = 100.0
"""The PSNR of equal images, which would be infinite."""
SIDE, SIGMA = 11, 1.5
"""SSIM's Gaussian window, as in the paper."""
K1, K2 = 0.01, 0.03
"""SSIM's stabilisers, in units of the range of values, as in the paper."""


def psnr(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the peak signal to noise ratio of each image in dB, at most 100, [N].

    10 log10(range^2 / mean squared error)

    Args:
        outputs: images [N, channels, height, width].
        labels: target images of the same shape: uint8, or floats in 0..1.

    Raises:
        DataError: see :func:`_prepared`.
    """
    images, targets, top = _prepared(outputs, labels)
    error = np.square(images - targets).reshape(len(images), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(top**2 / error), MOST_DB)


def ssim(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the mean structural similarity of each image, [N], averaged over channels.

    Gaussian window 11 x 11 with deviation 1.5, population statistics, no padding.

    Args:
        outputs: images [N, channels, height, width].
        labels: target images of the same shape: uint8, or floats in 0..1.

    Raises:
        DataError: see :func:`_prepared`; or the images are smaller than the window.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
        similarity", IEEE Trans. Image Process. 13(4), doi:10.1109/TIP.2003.819861.
    """
    images, targets, top = _prepared(outputs, labels)
    if min(images.shape[-2:]) < SIDE:
        raise DataError(
            f"the images are {images.shape[-2]}x{images.shape[-1]}; expected at least "
            f"{SIDE}x{SIDE} for ssim: use psnr"
        )
    rows = [_similarity(a, b, top) for a, b in zip(images, targets, strict=True)]
    return np.array(rows)


def _similarity(a: np.ndarray, b: np.ndarray, top: float) -> float:
    """Compute the SSIM of one image, [..., height, width]."""
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    both = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * top) ** 2, (K2 * top) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float((above / below).mean())


def _blur(image: np.ndarray) -> np.ndarray:
    """Compute the Gaussian mean over every window inside the image, along the last two axes."""
    offsets = np.arange(SIDE) - SIDE // 2
    window = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    window /= window.sum()
    for axis in (-1, -2):
        view = np.lib.stride_tricks.sliding_window_view(image, SIDE, axis=axis)
        image = view @ window
    return image


def _prepared(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return both as float64, and the range of values: 255 for uint8 targets, 1 for floats.

    Raises:
        DataError: the shapes differ, the targets are no images, or a value is NaN.
    """
    if labels.ndim == outputs.ndim - 1 and outputs.ndim == 4 and outputs.shape[1] == 1:
        labels = labels[:, None]
    if outputs.ndim not in (3, 4) or labels.shape != outputs.shape:
        raise DataError(
            f"the model's first output has shape {list(outputs.shape)}, the labels "
            f"{list(labels.shape)}; expected target images of the output's shape "
            "[N, channels, height, width]: save them as the label of `arrays`"
        )
    targets, images = labels.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(images).all():
        raise DataError("the model's first output holds NaN or Inf; expected finite numbers")
    if labels.dtype == np.uint8:
        return images, targets, 255.0
    low, high = float(targets.min()), float(targets.max())
    if labels.dtype.kind != "f" or not (low >= 0 and high <= 1):
        raise DataError(
            f"the target images are {labels.dtype} in {low:g}..{high:g}; expected uint8 in 0..255 "
            "or floats in 0..1: scale the targets, and the model's output with them"
        )
    return images, targets, 1.0
