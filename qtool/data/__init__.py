"""Calibration and evaluation data: readers, datasets and preprocessing."""

from collections.abc import Callable, Mapping

from qtool.data.config import Arrays, DataSection, Take
from qtool.data.dataset import (
    LABEL,
    Batch,
    Dataset,
    InputSpec,
    Opening,
    Source,
    check_sample_shapes,
    drop_overlap,
    split,
)
from qtool.data.preprocess import Preprocess, load_preprocess
from qtool.data.reader_options import LogMel, Python, Text, Wav
from qtool.data.readers.arrays import open_arrays
from qtool.data.readers.images import open_images
from qtool.data.readers.python import open_python
from qtool.data.readers.text import open_text
from qtool.data.readers.wav import open_wav
from qtool.errors import DataError

__all__ = [
    "READERS",
    "Arrays",
    "Batch",
    "DataSection",
    "Dataset",
    "InputSpec",
    "LogMel",
    "Opening",
    "Preprocess",
    "Python",
    "Source",
    "Take",
    "Text",
    "Wav",
    "check_sample_shapes",
    "drop_overlap",
    "load_preprocess",
    "open_dataset",
    "split",
]

Opener = Callable[[DataSection, Mapping[str, InputSpec], Opening], Dataset]

READERS: dict[str, Opener] = {
    "images": open_images,
    "arrays": open_arrays,
    "text": open_text,
    "wav": open_wav,
    "python": open_python,
}


def open_dataset(
    section: DataSection,
    inputs: Mapping[str, InputSpec],
    *,
    workers: int | None = None,
    trust_code: bool = False,
) -> Dataset:
    """Open the data a recipe section names, for the model's inputs.

    Args:
        section: the recipe's words, paths absolute.
        inputs: the model's inputs by name.
        workers: see :class:`Opening`.
        trust_code: see :class:`Opening`.

    Raises:
        RecipeError: the section names code, which is not trusted.
        DataError: a file is missing or damaged, or the data does not fit the inputs.
    """
    dataset = READERS[section.reader](section, inputs, Opening(workers, trust_code))
    if dataset.labels is not None and LABEL in inputs:
        raise DataError(
            f"the model has an input called `{LABEL}`, the name batches keep for the labels; "
            "rename the model's input, or give the data without labels"
        )
    return dataset
