"""The usual preprocessings of images that ``qtool init`` tries."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtool.data import InputSpec, Preprocess, load_preprocess
from qtool.data.default_preprocess import guess
from qtool.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, preprocess_names

PIXEL_MEAN = [round(255 * mean, 3) for mean in IMAGENET_MEAN]
"""Means of 0..255 pixels, as Caffe's networks subtract them."""

NORMALISATIONS: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    3: {
        "ImageNet mean and deviation": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "0 to 1": {},
        "-1 to 1": {"scale": 1 / 127.5, "mean": 1.0},
        "0 to 255": {"scale": 1.0},
        "0 to 255 less the ImageNet mean": {"scale": 1.0, "mean": PIXEL_MEAN},
    },
    1: {
        "0 to 1": {},
        "mean 0.5, deviation 0.5": {"mean": 0.5, "std": 0.5},
        "MNIST mean and deviation": {"mean": 0.1307, "std": 0.3081},
        "0 to 255": {"scale": 1.0},
    },
}


def normalisations(spec: InputSpec, paths: Sequence[Path]) -> Iterator[tuple[str, Preprocess]]:
    """Yield the usual normalisations with the sizes that fit the images and the model.

    Args:
        spec: the model's input, [N, C, H, W] or [N, H, W, C].
        paths: a few of the images.

    Raises:
        DataError: the input is no image of 1 or 3 channels.
    """
    base, _ = guess(spec, paths)
    if base.dtype == "uint8":
        yield "the pixels as they are", base
        return
    sizes = base.model_dump(include={"resize", "crop", "layout", "color"}, exclude_none=True)
    for name, values in NORMALISATIONS[base.channels].items():
        if base.channels == 1:
            yield name, Preprocess.model_validate({**sizes, **values})
            continue
        for color in ("rgb", "bgr"):
            ordered = {
                key: value[::-1] if color == "bgr" and isinstance(value, list) else value
                for key, value in values.items()
            }
            suffix = ", BGR" if color == "bgr" else ""
            yield name + suffix, Preprocess.model_validate({**sizes, **ordered, "color": color})


def resizings(settings: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    """Yield other usual ways to bring images to the size of the settings' crop."""
    if not isinstance(settings.resize, int) or not isinstance(settings.crop, int):
        return
    side = settings.crop
    ways: dict[str, dict[str, Any]] = {
        "bicubic": {"resize_mode": "bicubic"},
        "the short side to the crop": {"resize": side},
        "the whole image": {"resize": [side, side], "crop": None},
    }
    for name, changes in ways.items():
        yield name, settings.model_copy(update=changes)


def in_recipe(settings: Preprocess) -> str | dict[str, Any]:
    """Return the settings as a recipe names them: a name in configs/preprocess, or inline."""
    for name in preprocess_names():
        if load_preprocess(name) == settings:
            return name
    return settings.model_dump(mode="json", exclude_defaults=True)
