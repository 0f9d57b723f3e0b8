"""Find evaluation images that are calibration images too, encoded or scaled again."""

import numpy as np

from qtool.data import Dataset
from qtool.verification.changes.thumbnails import image_of

# Images that are compared of each part, evenly spread: folders in the same order meet.
SAMPLES = 64
# Rows and columns of what is compared; smaller images, such as digits, are too much alike.
SIDE = 16
# Correlation from which two images are the same one. Between 2,000 and 2,000 of CIFAR-10 it is at
# most 0.951, between 200 and 200 of ImageNet 0.80; images of ImageNet encoded again at JPEG quality
# 50, or scaled by half, have 0.997 and more.
ALIKE = 0.98
# Deviation from its mean below which an image is one colour.
FLAT = 1e-3


def near_duplicate_notes(calibration: Dataset, evaluation: Dataset) -> list[str]:
    """Return a warning where evaluation images nearly equal calibration images; often none.

    Images a, b are averaged to SIDE x SIDE, and compared by their correlation::

        r = <a - mean(a), b - mean(b)> / (|a - mean(a)| |b - mean(b)|)

    Args:
        calibration: samples whose content differs from that of all evaluation samples.
        evaluation: the samples that files are evaluated on.
    """
    if calibration.preprocess is None or evaluation.preprocess is None:
        return []
    parts = [data.take(data.choose(min(SAMPLES, data.count))) for data in (calibration, evaluation)]
    first, second = map(_signatures, parts)
    if first is None or second is None:
        return []
    alike = np.argwhere(second @ first.T > ALIKE)
    if not len(alike):
        return []
    count = len(np.unique(alike[:, 0]))
    name, other = parts[1].names[alike[0][0]], parts[0].names[alike[0][1]]
    return [
        f"WARNING: {count} of {parts[1].count} evaluation images nearly equal one of "
        f"{parts[0].count} calibration images (first: {name}, and {other} of calibrate): "
        "the same images, encoded again? Then the file is evaluated on samples that it "
        "was fitted to; give disjoint folders"
    ]


def _signatures(data: Dataset) -> np.ndarray | None:
    """Return an image a row, averaged, without its mean, of length 1; None: they are too small."""
    rows = []
    for batch in data.batches(1):
        image = image_of(batch)
        if image is None or min(image.shape[:2]) < SIDE:
            return None
        small = _averaged(_averaged(image.astype(np.float64), 0), 1).ravel()
        small -= small.mean()
        is_flat = small.std() <= FLAT * np.abs(image).max()
        rows.append(np.zeros_like(small) if is_flat else small / np.linalg.norm(small))
    return np.stack(rows)


def _averaged(image: np.ndarray, axis: int) -> np.ndarray:
    """Average an axis to SIDE elements."""
    starts = np.arange(SIDE) * image.shape[axis] // SIDE
    counts = np.diff(starts, append=image.shape[axis])
    sums = np.add.reduceat(image, starts, axis)
    means: np.ndarray = sums / np.expand_dims(counts, tuple(k for k in range(3) if k != axis))
    return means
