"""Calibration and evaluation data: readers, datasets and preprocessing."""

from collections.abc import Mapping

from qtool.data.config import DataSection, Take
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
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import Arrays, LogMel, Python, Synthetic, Text, Wav
from qtool.data.readers import READERS
from qtool.data.scalar_inputs import with_scalars
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
    "Reader",
    "Section",
    "Source",
    "Synthetic",
    "Take",
    "Text",
    "Wav",
    "check_sample_shapes",
    "drop_overlap",
    "load_preprocess",
    "open_dataset",
    "split",
]


def open_dataset(
    section: DataSection,
    inputs: Mapping[str, InputSpec],
    *,
    workers: int | None = None,
    trust_code: bool = False,
) -> Dataset:
    """Open the data that a recipe section names, for the model's inputs.

    Args:
        section: the section of the recipe, its paths absolute.
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
    return with_scalars(dataset, inputs)
