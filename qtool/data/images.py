"""The images reader: a folder of images, or of class folders."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from qtool.data.dataset import Batch, Dataset, InputSpec, cast, show_shape
from qtool.data.decode import SUFFIXES, damaged, decode_all, default_workers
from qtool.data.guess import guess
from qtool.data.labels import read_labels
from qtool.data.preprocess import Preprocess, load_preprocess, normalise
from qtool.data.section import DataSection
from qtool.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Image files that become one model input."""

    root: Path
    names: tuple[str, ...]
    how: Preprocess
    spec: InputSpec
    workers: int
    known: dict[int, str] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` preprocessed images, in order."""
        paths = [self.root / self.names[position] for position in positions]
        decoded = decode_all(paths, self.how, size, self.workers)
        first: tuple[int, ...] = ()
        try:
            for start in range(0, len(paths), size):
                rows = list(islice(decoded, size))
                first = first or rows[0].shape
                for path, row in zip(paths[start:], rows, strict=False):
                    self._check(path, row.shape, first)
                batch = normalise(np.stack(rows), self.how)
                yield {self.spec.name: cast(batch, self.spec, str(self.root))}
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def digest(self, position: int) -> str:
        """The sha256 of the file's bytes."""
        if position not in self.known:
            path = self.root / self.names[position]
            try:
                with path.open("rb") as file:
                    self.known[position] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(damaged(path, error)) from error
        return self.known[position]

    def _check(self, path: Path, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
        """Refuse an image that does not fit the input, or its neighbours where that is dynamic."""
        height, width, channels = shape
        nchw = self.how.layout == "nchw"
        sample = (channels, height, width) if nchw else (height, width, channels)
        if not self.spec.fits(sample):
            raise DataError(
                f"{path}: the preprocessed image has shape {show_shape(sample)}; the model's input "
                f"{self.spec.describe()} expects another: {_remedy(self.spec, self.how)}"
            )
        if shape != first:
            raise DataError(
                f"{path}: the preprocessed image is {height}x{width}, those before it are "
                f"{first[0]}x{first[1]}; expected one size: "
                "set `preprocess: {resize: .., crop: ..}`"
            )


def _remedy(spec: InputSpec, how: Preprocess) -> str:
    """What to write under ``preprocess`` so that images fit the input."""
    dims = spec.shape[1:]
    if len(dims) != 3:
        return "an image is no such input; use `arrays`"
    nchw = how.layout == "nchw"
    channels, height, width = dims if nchw else (dims[2], dims[0], dims[1])
    if isinstance(channels, int) and channels != how.channels:
        other = dims[2] if nchw else dims[0]
        if other == how.channels:
            return f"set `preprocess: {{layout: {'nhwc' if nchw else 'nchw'}}}`"
        return f"set `preprocess: {{color: {'gray' if channels == 1 else 'rgb'}}}`"
    if isinstance(height, int) and height == width:
        return f"set `preprocess: {{resize: {round(height * 256 / 224)}, crop: {height}}}`"
    return f"set `preprocess: {{resize: [{height}, {width}]}}`"


def open_images(
    section: DataSection, inputs: Mapping[str, InputSpec], workers: int | None
) -> Dataset:
    """Open a folder of images for a model with one input.

    Class folders, sorted by name, give the labels (an empty one counts); ``labels`` overrides them.

    Raises:
        DataError: no folder, no image, a file that is no image, several model inputs, or labels
            that do not cover the images.
    """
    root = Path(str(section.images))
    if len(inputs) != 1:
        raise DataError(
            f"{root}: images feed one input, the model has {len(inputs)} ({', '.join(inputs)}); "
            "save all inputs as .npz and use `arrays`"
        )
    (spec,) = inputs.values()
    label_file = Path(section.labels) if section.labels is not None else None
    listed, classes = _list(root, label_file)
    chosen, notes = section.choose(len(listed))
    names = tuple(listed[index] for index in chosen)
    labels: np.ndarray | None = None
    if label_file is not None:
        labels, classes, more = read_labels(label_file, names)
        notes += more
    elif classes is not None:
        index = {name: number for number, name in enumerate(classes)}
        labels = np.array([index[name.split("/", 1)[0]] for name in names], np.int64)
    paths = [root / name for name in names]
    how, note = _preprocess(section, spec, paths)
    workers = default_workers(paths) if workers is None else workers
    source = ImageSource(root, names, how, spec, workers)
    positions = tuple(range(len(names)))
    return Dataset(names, source, positions, labels, classes, notes + note)


def _preprocess(
    section: DataSection, spec: InputSpec, paths: Sequence[Path]
) -> tuple[Preprocess, tuple[str, ...]]:
    """The settings the section names, or a guess and its announcement."""
    if section.preprocess is None:
        how, note = guess(spec, paths)
        return how, (note,)
    named = section.preprocess
    how = load_preprocess(named) if isinstance(named, str) else named
    if (how.dtype == "uint8") != (spec.dtype == "uint8"):
        raise DataError(
            f"`preprocess` gives {how.dtype}, but the model's input is {spec.describe()}; set "
            f"`preprocess: {{dtype: {'uint8' if spec.dtype == 'uint8' else 'float32'}, ...}}`"
        )
    return how, ()


def _list(root: Path, label_file: Path | None) -> tuple[list[str], tuple[str, ...] | None]:
    """The images' names relative to root, sorted, and the classes where there are class folders."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DataError(f"{root}: found {found}, expected a folder of images; correct `images`")
    try:
        entries = sorted(name for name in os.listdir(root) if not name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{root}: cannot be listed ({error}); expected a readable folder"
        ) from error
    folders = tuple(name for name in entries if (root / name).is_dir())
    files = [name for name in entries if name not in set(folders) and root / name != label_file]
    _refuse_strangers(root, files)
    if files and folders:
        raise DataError(
            f"{root}: found {len(files)} images (first: {files[0]}) beside {len(folders)} folders "
            f"(first: {folders[0]}); expected class folders only, or images only: move one kind"
        )
    names = files
    for folder in folders:
        inside = sorted(_walk(root, folder))
        _refuse_strangers(root, inside)
        names.extend(inside)
    if not names:
        raise DataError(f"{root}: the folder holds no image; expected images or class folders")
    return names, folders or None


def _walk(root: Path, folder: str) -> Iterator[str]:
    """Every file below root/folder that is not hidden, relative to root with forward slashes."""
    for place, inner, files in os.walk(root / folder, onerror=_unlisted):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(root).as_posix()


def _unlisted(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); expected a readable folder"
    ) from error


def _refuse_strangers(root: Path, names: Sequence[str]) -> None:
    for name in names:
        if Path(name).suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{root / name}: not an image by its name; expected {', '.join(sorted(SUFFIXES))}: "
                "move it elsewhere, or hide it with a leading dot"
            )
