"""Metrics of images against target images: PSNR and SSIM."""

import numpy as np

from qtool.errors import DataError

MOST_DB = 100.0
"""The PSNR of equal images, which would be infinite."""
SIDE, SIGMA = 11, 1.5
"""SSIM's Gaussian window."""
K1, K2 = 0.01, 0.03


def psnr(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """10 log10(range^2 / mean squared error) of each image in dB, at most 100, [N].

    Raises:
        DataError: see :func:`_prepared`.
    """
    found, wanted, top = _prepared(outputs, labels)
    error = np.square(found - wanted).reshape(len(found), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(top**2 / error), MOST_DB)


def ssim(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean structural similarity of each image, [N]; channels are judged apart and averaged.

    Gaussian window 11 x 11 with deviation 1.5, population statistics, no padding.

    Raises:
        DataError: see :func:`_prepared`; or the images are smaller than the window.
    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
        similarity", IEEE Trans. Image Process. 13(4), doi:10.1109/TIP.2003.819861.
    """
    found, wanted, top = _prepared(outputs, labels)
    if min(found.shape[-2:]) < SIDE:
        raise DataError(
            f"the images are {found.shape[-2]}x{found.shape[-1]}; expected at least "
            f"{SIDE}x{SIDE} for ssim: use psnr"
        )
    rows = [_similarity(a, b, top) for a, b in zip(found, wanted, strict=True)]
    return np.array(rows)


def _similarity(a: np.ndarray, b: np.ndarray, top: float) -> float:
    """SSIM of one image, [..., height, width]."""
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    both = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * top) ** 2, (K2 * top) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float((above / below).mean())


def _blur(image: np.ndarray) -> np.ndarray:
    """The Gaussian mean over every window that lies inside, along the last two axes."""
    offsets = np.arange(SIDE) - SIDE // 2
    window = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    window /= window.sum()
    for axis in (-1, -2):
        view = np.lib.stride_tricks.sliding_window_view(image, SIDE, axis=axis)
        image = view @ window
    return image


def _prepared(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Both as float64, and the range of values: 255 for uint8 targets, 1 for floats in 0..1.

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
    wanted, found = labels.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(found).all():
        raise DataError("the model's first output holds NaN or Inf; expected finite numbers")
    if labels.dtype == np.uint8:
        return found, wanted, 255.0
    low, high = float(wanted.min()), float(wanted.max())
    if labels.dtype.kind != "f" or not (low >= 0 and high <= 1):
        raise DataError(
            f"the target images are {labels.dtype} in {low:g}..{high:g}; expected uint8 in 0..255 "
            "or floats in 0..1: scale the targets, and the model's output with them"
        )
    return found, wanted, 1.0
