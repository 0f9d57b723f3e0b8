"""The preprocessings that models are usually trained with, for a model's input."""

from collections.abc import Iterator
from typing import Any

import yaml

from qtool.data.preprocess import Preprocess, load_preprocess, preprocess_names

ARITHMETIC = ("scale", "mean", "std")
COMMON = ("imagenet", "tf", "unit", "caffe", "pixels")
"""Of equal scores the first of these is named."""
OTHER_COLOR = {"rgb": "bgr", "bgr": "rgb"}
OTHER_LAYOUT = {"nchw": "nhwc", "nhwc": "nchw"}


def usual_preprocess(own: Preprocess, sizes: bool = False) -> Iterator[tuple[str, Preprocess]]:
    """Yield named settings that differ from ``own``, each once.

    They are the arithmetic of every setting in configs/preprocess with both orders of the channels,
    on the pixels of ``own``, and the other layout.

    Args:
        own: the settings that others are compared with; sets size, layout and type.
        sizes: also yield every named setting with its own resize and crop.
    """
    seen = [own]
    for name, changes in _changes(own, sizes):
        other = Preprocess.model_validate(own.model_dump() | changes)
        if other not in seen:
            seen.append(other)
            yield name, other


def _changes(own: Preprocess, sizes: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what to change in ``own``, with a name."""
    colored = own.color in OTHER_COLOR
    names = [*COMMON, *(name for name in preprocess_names() if name not in COMMON)]
    named = {name: load_preprocess(name) for name in names if own.dtype != "uint8"}
    if not colored:
        named = {k: each for k, each in named.items() if not isinstance(each.mean, list)}
    # One change before several: the first of equals is named.
    if colored:
        yield f"color: {OTHER_COLOR[own.color]}", _flipped(own)
    yield f"layout: {OTHER_LAYOUT[own.layout]}", {"layout": OTHER_LAYOUT[own.layout]}
    for name, setting in named.items():
        color = {"color": setting.color if colored else own.color}
        yield name, setting.model_dump(include={*ARITHMETIC}) | color
    for name, setting in named.items():
        if colored:
            yield f"{name}, color: {OTHER_COLOR[setting.color]}", _flipped(setting)
    for name, setting in named.items():
        if sizes and colored and setting.resize is not None:
            keys = {*ARITHMETIC, "color", "resize", "crop"}
            yield f"{name} and its size", setting.model_dump(include=keys)


def _flipped(setting: Preprocess) -> dict[str, Any]:
    """Return the arithmetic for the other order of the channels."""
    values = setting.model_dump(include={*ARITHMETIC})
    turned = {k: v[::-1] if isinstance(v, list) else v for k, v in values.items()}
    return turned | {"color": OTHER_COLOR[setting.color]}


def usual_resizes(own: Preprocess) -> Iterator[tuple[str, Preprocess]]:
    """Yield other usual ways to bring images to the size of the settings' crop, with a name.

    Args:
        own: settings that resize the short side and crop a square; others have no other ways.
    """
    if not isinstance(own.resize, int) or not isinstance(own.crop, int):
        return
    side = own.crop
    ways: dict[str, dict[str, Any]] = {
        "a short side of 256": {"resize": max(side, 256)},
        "bicubic": {"resize_mode": "bicubic"},
        "the short side to the crop": {"resize": side},
        "the whole image": {"resize": [side, side], "crop": None},
    }
    for name, changes in ways.items():
        if (other := own.model_copy(update=changes)) != own:
            yield name, other


def in_recipe(setting: Preprocess) -> str | dict[str, Any]:
    """Return what ``preprocess:`` of a recipe would hold: a name, or the keys that differ."""
    for name in preprocess_names():
        if load_preprocess(name) == setting:
            return name
    return setting.model_dump(mode="json", exclude_defaults=True)


def as_yaml(setting: Preprocess) -> str:
    """Return what ``preprocess:`` of a recipe would hold, on one line."""
    value = in_recipe(setting)
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()
