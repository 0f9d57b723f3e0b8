"""From pixels to a model input: the options, the named settings and the arithmetic."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qtool.errors import DataError, suggest

Size = Annotated[int, Field(gt=0)]
Pair = Annotated[list[Size], Field(min_length=2, max_length=2)]
Channels = Annotated[list[float], Field(min_length=1, max_length=4)]
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


class Preprocess(BaseModel):
    """Preprocessing of a decoded image: resize, crop, then ``(x * scale - mean) / std``.

    Resizing is Pillow's (antialiased); a short side s makes the long side round(long * s / short).
    The crop is centred. EXIF rotation is not applied; alpha is dropped; gray and palette images
    become RGB unless ``color`` is gray. All arithmetic is float32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    resize: Size | Pair | None = None
    """The short side, or [height, width]."""
    resize_mode: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    """Pillow's filter for resizing."""
    crop: Size | Pair | None = None
    """The side of the centre crop, or [height, width]."""
    scale: float = 1 / 255
    """Factor of the 0..255 pixels, applied first."""
    mean: float | Channels = 0.0
    """Subtracted after scale, in its unit: a number, or one per channel."""
    std: float | Channels = 1.0
    """Divides last, in the unit after scale: a number, or one per channel."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """The order of the channels; mean and std follow it."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """The order of the axes."""
    dtype: Literal["float32", "uint8"] = "float32"
    """The type of the model's input; uint8 feeds the pixels as they are."""

    @model_validator(mode="after")
    def _consistent(self) -> "Preprocess":
        for key in ("mean", "std"):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) != self.channels:
                raise ValueError(
                    f"`{key}` has {len(value)} values, but `color: {self.color}` has "
                    f"{self.channels} channels; give one number or {self.channels}"
                )
            if not np.all(np.isfinite(value)):
                raise ValueError(f"`{key}` is {value}; expected finite numbers")
        if not np.all(np.asarray(self.std) > 0):
            raise ValueError(f"`std` is {self.std}; expected numbers above 0")
        if not np.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"`scale` is {self.scale}; expected a finite number other than 0")
        usual = {"scale": 1 / 255, "mean": 0.0, "std": 1.0}
        idle = [key for key, value in usual.items() if getattr(self, key) != value]
        if self.dtype == "uint8" and idle:
            raise ValueError(
                f"`dtype: uint8` feeds the pixels as they are, so `{idle[0]}` would do nothing; "
                "remove it, or use `dtype: float32`"
            )
        return self

    @property
    def channels(self) -> int:
        """The number of channels of a sample."""
        return 1 if self.color == "gray" else 3


def preprocess_folder() -> Path:
    """Return the folder of named settings, of the installed package or of the source tree."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "configs" / "preprocess"
    return installed if installed.is_dir() else package.parent / "configs" / "preprocess"


def preprocess_names() -> list[str]:
    """Return the names that ``preprocess:`` accepts, sorted."""
    return sorted(path.stem for path in preprocess_folder().glob("*.yaml"))


def is_path(name: str) -> bool:
    """Return whether a ``preprocess:`` string is a path, not a name in configs/preprocess."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def check_name(name: str) -> str:
    """Return the string as it is; raise ValueError where it is a name that does not exist."""
    if not is_path(name) and name not in preprocess_names():
        raise ValueError(
            f"no preprocess setting is called `{name}`{suggest(name, preprocess_names())}; "
            f"known: {', '.join(preprocess_names())}; or a path ending in .yaml, or an inline "
            "mapping"
        )
    return name


def load_preprocess(name: str) -> Preprocess:
    """Read a named setting or a YAML file.

    Args:
        name: a name in configs/preprocess, or the path of a YAML file.

    Raises:
        DataError: no such name or file, or its content is not a preprocess mapping.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise DataError(str(error)) from error
    path = Path(name) if is_path(name) else preprocess_folder() / f"{name}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as preprocess settings: {error}") from error
    if not isinstance(data, dict):
        raise DataError(
            f"{path}: found {type(data).__name__}, expected a mapping such as "
            "`{resize: 256, crop: 224, mean: [...], std: [...]}`"
        )
    try:
        return Preprocess.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{path}: {_first_problem(error, data)}") from error


def _first_problem(error: ValidationError, data: Mapping[str, Any]) -> str:
    """Return the first complaint of pydantic as one line, a suggestion for an unknown key."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        keys = list(Preprocess.model_fields)
        return f"unknown key `{key}`{suggest(key, keys)}; known: {', '.join(keys)}"
    where = f"`{key}` is {data[key]!r}: " if key in data else ""
    return where + first["msg"].removeprefix("Value error, ")


def normalise(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Convert pixels to a batch in the layout and dtype of the settings.

    Args:
        pixels: uint8 [N, H, W, C], C in RGB order.
        preprocess: the settings.

    Returns:
        Contiguous [N, C, H, W] or [N, H, W, C], float32 or, unchanged, uint8.
    """
    if preprocess.color == "bgr":
        pixels = pixels[..., ::-1]
    if preprocess.layout == "nchw":
        pixels = pixels.transpose(0, 3, 1, 2)
    if preprocess.dtype == "uint8":
        return np.ascontiguousarray(pixels)
    shape = (-1, 1, 1) if preprocess.layout == "nchw" else (-1,)
    batch = pixels.astype(np.float32, order="C")
    batch *= np.float32(preprocess.scale)
    batch -= np.asarray(preprocess.mean, np.float32).reshape(shape)
    batch /= np.asarray(preprocess.std, np.float32).reshape(shape)
    return batch
