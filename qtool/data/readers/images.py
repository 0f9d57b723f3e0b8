"""The images reader: a folder of images, or of class folders."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from qtool.data.class_names import ordered_classes
from qtool.data.dataset import Dataset
from qtool.data.default_preprocess import guess
from qtool.data.inputs import InputSpec, cast, show_shape, unfed_hint
from qtool.data.labels import read_labels, read_maps
from qtool.data.preprocess import Preprocess, load_preprocess, normalise
from qtool.data.reader import Reader, Section
from qtool.data.readers.decode import (
    SUFFIXES,
    damaged,
    decode,
    decode_all,
    default_workers,
    looks_whole,
)
from qtool.data.readers.folders import Kind, folder_labels, list_samples
from qtool.data.source import Batch, Opening
from qtool.errors import DataError, SampleError

IMAGES = Kind("images", "image", "an image", SUFFIXES)


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Image files that become one model input.

    Attributes:
        root: the folder.
        names: the files, relative to root.
        preprocess: how pixels become the input.
        spec: the model's input.
        workers: threads that decode; 0 decodes in the caller's.
        digests: by position, computed on first use.
    """

    root: Path
    names: tuple[str, ...]
    preprocess: Preprocess
    spec: InputSpec
    workers: int
    digests: dict[int, str] = field(default_factory=dict)

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` preprocessed images, in order."""
        paths = [self.root / self.names[position] for position in positions]
        decoded = decode_all(paths, self.preprocess, size, self.workers)
        first: tuple[int, ...] = ()
        try:
            for start in range(0, len(paths), size):
                rows = list(islice(decoded, size))
                first = first or rows[0].shape
                for path, row in zip(paths[start:], rows, strict=False):
                    self._check(path, row.shape, first)
                batch = normalise(np.stack(rows), self.preprocess)
                yield {self.spec.name: cast(batch, self.spec, str(self.root))}
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def digest(self, position: int) -> str:
        """Return the sha256 of the file's bytes; refuse a file that cannot be decoded."""
        if position not in self.digests:
            path = self.root / self.names[position]
            try:
                content = path.read_bytes()
            except OSError as error:
                raise SampleError(damaged(path, error)) from error
            if not looks_whole(content):
                decode(path, self.preprocess)  # decides, since some decoders accept more
            self.digests[position] = hashlib.sha256(content).hexdigest()
        return self.digests[position]

    def _check(self, path: Path, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
        """Refuse an image that does not fit the input, or differs from the first of its batch."""
        height, width, channels = shape
        nchw = self.preprocess.layout == "nchw"
        sample = (channels, height, width) if nchw else (height, width, channels)
        if not self.spec.fits(sample):
            raise DataError(
                f"{path}: the preprocessed image has shape {show_shape(sample)}; the model's input "
                f"{self.spec.describe()} expects another: {_remedy(self.spec, self.preprocess)}"
            )
        if shape != first:
            raise DataError(
                f"{path}: the preprocessed image is {height}x{width}, those before it are "
                f"{first[0]}x{first[1]}; expected one size: "
                "set `preprocess: {resize: .., crop: ..}`"
            )


def _remedy(spec: InputSpec, preprocess: Preprocess) -> str:
    """Return the ``preprocess`` keys that make images fit the input, for messages."""
    dims = spec.sample
    if len(dims) != 3:
        return "an image is no such input; use `arrays`"
    nchw = preprocess.layout == "nchw"
    channels, height, width = dims if nchw else (dims[2], dims[0], dims[1])
    if isinstance(channels, int) and channels != preprocess.channels:
        other = dims[2] if nchw else dims[0]
        if other == preprocess.channels:
            return f"set `preprocess: {{layout: {'nhwc' if nchw else 'nchw'}}}`"
        return f"set `preprocess: {{color: {'gray' if channels == 1 else 'rgb'}}}`"
    if isinstance(height, int) and height == width:
        return f"set `preprocess: {{resize: {round(height * 256 / 224)}, crop: {height}}}`"
    return f"set `preprocess: {{resize: [{height}, {width}]}}`"


class ImageReader(Reader):
    """Open a folder of images for a model with one input.

    Class folders, sorted by name, give the labels (an empty one counts); ``labels`` overrides them:
    a file, or a folder of label maps. ``preprocess`` makes pixels the model's input; without it,
    it is guessed from the input's shape.
    """

    description = "A folder of images, or of class folders."
    options = str
    source = "path"
    short_form = False  # the key takes a plain string and nothing else
    paths = ("path",)
    uses = ("preprocess", "labels", "classes")
    instead: ClassVar[Mapping[str, str]] = {}

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the folder; see :class:`qtool.data.reader.Reader`."""
        root = Path(section.reader_options(str))
        if len(inputs) != 1:
            raise DataError(
                f"{root}: images feed one input, the model has {len(inputs)} ({', '.join(inputs)});"
                f" save all inputs as .npz and use `arrays`{unfed_hint(inputs.values())}"
            )
        (spec,) = inputs.values()
        label_file = Path(section.labels) if section.labels is not None else None
        listing = list_samples(root, IMAGES, label_file)
        classes = listing.classes
        chosen, notes = section.choose(len(listing.names))
        names = tuple(listing.names[index] for index in chosen)
        notes = (*listing.notes, *notes)
        maps = label_file is not None and label_file.is_dir()
        if maps and section.class_order is not None:
            raise DataError(
                f"{label_file}: label maps hold class numbers, which `classes` cannot order: "
                "remove it"
            )
        labels: np.ndarray | None = None
        if label_file is not None and not maps:
            labels, classes, more = read_labels(label_file, names, section.class_order)
            notes += more
        elif label_file is None and classes is not None:
            classes = ordered_classes(classes, section.class_order, str(root))
            labels = folder_labels(names, classes)
        paths = [root / name for name in names]
        preprocess, note = _preprocess(section, spec, paths)
        if label_file is not None and maps:  # maps are resized as the images are
            labels, classes = read_maps(label_file, names, preprocess), None
        workers = default_workers(paths) if opening.workers is None else opening.workers
        source = ImageSource(root, names, preprocess, spec, workers)
        positions = tuple(range(len(names)))
        guesses = {} if section.preprocess is not None else {"preprocess": preprocess}
        return Dataset(
            names, source, positions, labels, classes, notes + note, preprocess, guesses=guesses
        )


def _preprocess(
    section: Section, spec: InputSpec, paths: Sequence[Path]
) -> tuple[Preprocess, tuple[str, ...]]:
    """Return the settings that the section names; without them, a guess and a note about it."""
    if section.preprocess is None:
        preprocess, note = guess(spec, paths)
        return preprocess, (note,)
    named = section.preprocess
    preprocess = load_preprocess(named) if isinstance(named, str) else named
    if (preprocess.dtype == "uint8") != (spec.dtype == "uint8"):
        raise DataError(
            f"`preprocess` gives {preprocess.dtype}, but the model's input is {spec.describe()}; "
            f"set `preprocess: {{dtype: {'uint8' if spec.dtype == 'uint8' else 'float32'}, ...}}`"
        )
    return preprocess, ()
