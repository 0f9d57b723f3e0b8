"""The preprocessing assumed where the recipe names none; the report says so."""

from collections.abc import Sequence
from pathlib import Path

from qtool.data.inputs import InputSpec, show_shape
from qtool.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from qtool.data.readers.decode import image_size
from qtool.errors import DataError

HEADERS = 64
"""How many images' headers are read, evenly spaced, to learn their size."""
USUAL = 224
"""The side of ImageNet crops; images are resized to 256 before, which sets the ratio below."""


def guess(spec: InputSpec, paths: Sequence[Path]) -> tuple[Preprocess, str]:
    """Guess ImageNet-style preprocessing from the model input's shape.

    Images that already have the input's size are not resized; others get the short side
    H * 256 / 224 and a centre crop (a non-square input: a plain resize). Three channels get the
    ImageNet mean and deviation, one channel only 1/255, a uint8 input the pixels as they are.

    Args:
        spec: the model's input, [N, C, H, W] or [N, H, W, C].
        paths: the images.

    Returns:
        The settings, and a note about them for the report.

    Raises:
        DataError: the input is no image of 1 or 3 channels.
    """
    layout, channels, height, width = _read_shape(spec)
    options: dict[str, object] = {"layout": layout, "color": "rgb" if channels == 3 else "gray"}
    if spec.dtype == "uint8":
        options["dtype"] = "uint8"
    elif channels == 3:
        options |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    options |= _sizes(height, width, paths)
    settings = Preprocess.model_validate(options)
    listed = ", ".join(f"{key}: {options[key]}" for key in options)
    kind = "ImageNet-style" if channels == 3 and spec.dtype != "uint8" else "plain"
    note = (
        f"{kind} preprocessing guessed from the input shape {show_shape(spec.shape)}: "
        f"{{{listed}}}; set `preprocess` if the model was trained otherwise"
    )
    return settings, note


def _read_shape(spec: InputSpec) -> tuple[str, int, int | None, int | None]:
    """Return (layout, channels, height, width) of an image input; a dynamic size is None."""
    dims = [None, *(dim if isinstance(dim, int) else None for dim in spec.sample)]
    if len(dims) == 4 and dims[1] in (1, 3):
        return "nchw", dims[1] or 0, dims[2], dims[3]
    if len(dims) == 4 and dims[3] in (1, 3):
        return "nhwc", dims[3] or 0, dims[1], dims[2]
    raise DataError(
        f"no preprocessing can be guessed for the model's input {spec.describe()}; expected "
        "[N, C, H, W] or [N, H, W, C] with C = 1 or 3: set `preprocess`, or use `arrays`"
    )


def _sizes(height: int | None, width: int | None, paths: Sequence[Path]) -> dict[str, object]:
    """Return the resize and crop options that bring these images to the input's size."""
    step = max(1, len(paths) // HEADERS)
    seen = {image_size(path) for path in paths[::step]}
    target = (height or width or USUAL, width or height or USUAL)
    dynamic = height is None and width is None
    if seen == {target} or (dynamic and len(seen) == 1):
        return {}
    if target[0] == target[1]:
        return {"resize": round(target[0] * 256 / USUAL), "crop": target[0]}
    return {"resize": list(target)}
