"""Image files to pixels: one file, and many in order on a few threads.

Threads, not processes: Pillow releases the interpreter lock while it decodes, converts and
resizes, so two threads decode twice as fast as one, start at once and leave nothing behind.
"""

import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtool.data.preprocess import Preprocess
from qtool.errors import DataError, SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""The image formats read. Vector formats are left out: Pillow runs other programs for them."""

SUFFIXES = tuple(
    f".{name}"
    for names in ("png jpg jpeg jpe bmp gif tif tiff webp", "ppm pgm pbm pnm jp2 j2k")
    for name in names.split()
)
"""The suffixes, in any case, of files that are read as images."""
# Pillow's modes that convert to L or RGB without loss of range; 16 bits and floats do not.
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
# The beginnings of formats without an end that can be looked for: BMP, TIFF, JPEG 2000, PPM.
ENDLESS = (
    *(b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x4f"),
    *(b"P%d" % kind for kind in range(1, 7)),
)
PNG = b"\x89PNG\r\n\x1a\n"
MAX_WORKERS = 16
TINY = 8192
"""Mean bytes of a file below which threads do not pay."""
MAX_PIXELS = 89_478_485
"""A larger image is refused before it is decoded; Pillow's own bound (256 MiB of RGB)."""


def default_workers(paths: Sequence[Path]) -> int:
    """Return how many threads decode: one per usable core, at most 16, or none.

    None on a single core and for tiny files. A tiny file (CIFAR's 2 KB) takes longer to pass to a
    thread than to decode: 10,000 of them take 0.9 s in the caller's thread and 1.3 s on two others.

    Args:
        paths: the images; at most 16 of them are looked at.
    """
    some = paths[:: max(1, len(paths) // 16)]
    if sum(path.stat().st_size for path in some if path.is_file()) < TINY * len(some):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if not cores or cores == 1 else min(cores, MAX_WORKERS)


def decode(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Decode, convert, resize and crop one image.

    Args:
        path: the file.
        preprocess: gives colour, size and crop; its arithmetic is not applied here.

    Returns:
        Pixels uint8 [H, W, C]; C is 1 for gray, else 3 in RGB order.

    Raises:
        DataError: the file is no image, is damaged, is too large, or is smaller than the crop.
    """
    image = _open(path, preprocess.color == "gray")
    if preprocess.resize is not None:
        image = _resize(image, preprocess, path)
    if preprocess.crop is not None:
        image = _crop(image, preprocess.crop, path)
    return np.asarray(image).reshape(image.height, image.width, -1)


def decode_map(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Decode a label map as whole numbers; it is resized (nearest) and cropped as the images are.

    Args:
        path: the file.
        preprocess: that of the images.

    Returns:
        uint8 or uint16 [H, W]: gray values, or the numbers behind a palette's colours.

    Raises:
        DataError: the file is damaged, or has colours that no palette numbers.
    """
    with _header(path) as image:
        if image.mode not in ("L", "P", "1", "I;16"):
            raise DataError(
                f"{path}: found pixels of mode {image.mode}, expected class numbers: a gray image "
                "or one with a palette; convert it"
            )
        try:
            image.load()
        except Exception as error:  # Pillow raises many kinds on damaged content
            raise SampleError(damaged(path, error)) from error
        nearest = preprocess.model_copy(update={"resize_mode": "nearest"})
        resized: Image = image if preprocess.resize is None else _resize(image, nearest, path)
        cropped = resized if preprocess.crop is None else _crop(resized, preprocess.crop, path)
        return np.asarray(cropped).astype(np.uint16 if image.mode == "I;16" else np.uint8)


def looks_whole(content: bytes) -> bool:
    """Return whether the bytes of an image end as its format says, and hold its checksums.

    Only a hint: nothing is decoded, and formats without an end or a size look whole.
    """
    if content.startswith(PNG):
        return _has_checksums(content)
    if content.startswith(b"\xff\xd8"):  # JPEG; some cameras write more behind the end
        return b"\xff\xd9" in content[-1024:]
    if content[:4] == b"RIFF":  # WEBP
        return len(content) >= int.from_bytes(content[4:8], "little") + 8
    if content[:3] == b"GIF":
        return content.rstrip(b"\0").endswith(b";")
    return content.startswith(ENDLESS)


def _has_checksums(content: bytes) -> bool:
    """Return whether the chunks of a PNG file are whole, up to its end."""
    start, kind = len(PNG), b""
    while kind != b"IEND":
        size, kind = (
            int.from_bytes(content[start : start + 4], "big"),
            content[start + 4 : start + 8],
        )
        body = memoryview(content)[start + 4 : start + 8 + size]
        stored = content[start + 8 + size : start + 12 + size]
        if len(stored) < 4 or zlib.crc32(body) != int.from_bytes(stored, "big"):
            return False
        start += 12 + size
    return True


def image_size(path: Path) -> tuple[int, int]:
    """Read the (height, width) from an image's header; pixels are not decoded."""
    with _header(path) as image:
        return image.height, image.width


def _header(path: Path) -> "Image":
    """Open the file and check format and size in its header."""
    from PIL import Image

    try:
        if path.stat().st_size == 0:
            raise SampleError(f"{path}: the file is empty, expected an image; remove or replace it")
        image = Image.open(path, formats=FORMATS)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path)) from error
    except Image.UnidentifiedImageError as error:
        raise SampleError(
            f"{path}: the content is no image; expected one of {', '.join(FORMATS)}: remove or "
            "replace the file"
        ) from error
    except Exception as error:  # Pillow raises many kinds on damaged headers
        raise SampleError(damaged(path, error)) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(_too_large(path))
    return image


def _too_large(path: Path) -> str:
    return (
        f"{path}: the image has, or would be resized to, more than {MAX_PIXELS} pixels; expected "
        "an ordinary picture: remove it, or scale it down if it is real"
    )


def damaged(path: Path, error: Exception) -> str:
    """Return the message for an image that cannot be read."""
    return (
        f"{path}: the image cannot be read ({error}); expected a whole file: remove or replace it"
    )


def _open(path: Path, gray: bool) -> "Image":
    """Decode an image in mode L or RGB; the first frame where there are several."""
    with _header(path) as image:
        if image.mode not in EIGHT_BIT:
            raise DataError(
                f"{path}: found pixels of mode {image.mode}, expected 8 bits per channel; convert "
                "the image, or save the model's inputs as .npz and use `arrays`"
            )
        try:
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("L" if gray else "RGB")
            return image.convert("L" if gray else "RGB")
        except Exception as error:  # Pillow raises many kinds on damaged content
            raise SampleError(damaged(path, error)) from error


def _resize(image: "Image", preprocess: Preprocess, path: Path) -> "Image":
    from PIL.Image import Resampling

    if isinstance(preprocess.resize, list):
        height, width = preprocess.resize
    else:
        factor = (preprocess.resize or 1) / min(image.size)
        width, height = (max(1, round(side * factor)) for side in image.size)
    if (width, height) == image.size:
        return image
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(path))
    return image.resize((width, height), Resampling[preprocess.resize_mode.upper()])


def _crop(image: "Image", crop: int | list[int], path: Path) -> "Image":
    height, width = crop if isinstance(crop, list) else (crop, crop)
    if height > image.height or width > image.width:
        raise DataError(
            f"{path}: the image is {image.height}x{image.width} before cropping, expected at least "
            f"`crop: {crop}`; set `resize` in `preprocess` to the crop or more, or crop less"
        )
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def decode_all(
    paths: Sequence[Path], preprocess: Preprocess, ahead: int, workers: int
) -> Iterator[np.ndarray]:
    """Decode many images in order.

    At most ``ahead`` and two per worker are decoded before the caller takes them, so memory does
    not depend on how many there are. Closing the iterator ends the threads.

    Args:
        paths: the files.
        preprocess: see :func:`decode`.
        ahead: how many images the caller takes at once.
        workers: threads; 0 decodes in the caller's.
    """
    if workers == 0 or len(paths) < 2:
        for path in paths:
            yield decode(path, preprocess)
        return
    pool = ThreadPoolExecutor(min(workers, len(paths)), thread_name_prefix="qtool-decode")
    waiting: deque[Future[Any]] = deque()
    rest = iter(paths)
    try:
        for path in islice(rest, ahead + 2 * workers):
            waiting.append(pool.submit(decode, path, preprocess))
        while waiting:
            pixels = waiting.popleft().result()
            for path in islice(rest, 1):
                waiting.append(pool.submit(decode, path, preprocess))
            yield pixels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
