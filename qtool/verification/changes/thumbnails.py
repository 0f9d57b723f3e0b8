"""Draw samples as small images, as the network reads them."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from qtool.data import Batch, Dataset
from qtool.data.preprocess import Preprocess

SIDE = 96
"""Pixels of the longer side; smaller images are enlarged by whole factors."""
CHANNELS = {1: "L", 3: "RGB"}


def image_of(batch: Batch) -> np.ndarray | None:
    """Return the first sample of a batch as [H, W, C]; None where it is not one image."""
    images = [_channels_last(array[0]) for array in batch.values() if array.ndim == 4]
    drawn = [image for image in images if image.shape[2] in CHANNELS]
    return drawn[0] if len(drawn) == 1 else None


def thumbnails(data: Dataset, indices: Sequence[int]) -> list[str]:
    """Return WebP images of samples as data URIs.

    Args:
        data: its samples have one image each (:func:`image_of`).
        indices: of the samples.
    """
    if not indices:
        return []
    batches = data.take(indices).batches(1)
    images = (image for batch in batches if (image := image_of(batch)) is not None)
    return [_data_uri(_picture(_pixels(image, data.preprocess))) for image in images]


def _channels_last(image: np.ndarray) -> np.ndarray:
    first = image.shape[0] in CHANNELS and image.shape[2] not in CHANNELS
    return np.moveaxis(image, 0, 2) if first else image


def _pixels(image: np.ndarray, preprocess: Preprocess | None) -> np.ndarray:
    """Undo the normalisation of a preprocessed image, and the order of its colours."""
    if preprocess is None:
        return image.astype(np.float64)
    pixels = image.astype(np.float64) * np.asarray(preprocess.std) + np.asarray(preprocess.mean)
    return pixels[:, :, ::-1] if preprocess.color == "bgr" else pixels


def _picture(pixels: np.ndarray) -> Image.Image:
    """Return values [H, W, C] as an image, stretched to the whole range of grays or colours."""
    low, high = pixels.min(), pixels.max()
    scaled = np.rint((pixels - low) * (255 / (high - low or 1.0))).astype(np.uint8)
    mode = CHANNELS[pixels.shape[2]]
    image = Image.fromarray(scaled[:, :, 0] if mode == "L" else scaled, mode)
    factor = SIDE // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE))
    return image


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
