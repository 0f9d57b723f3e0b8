"""Calibration and evaluation data: readers, datasets and preprocessing."""

from collections.abc import Callable, Mapping

from qtool.data.arrays import open_arrays
from qtool.data.dataset import LABEL, Batch, Dataset, InputSpec, Source, drop_overlap, split
from qtool.data.images import open_images
from qtool.data.preprocess import Preprocess, load_preprocess
from qtool.data.section import Arrays, DataSection, Take
from qtool.errors import DataError

__all__ = [
    "READERS",
    "Arrays",
    "Batch",
    "DataSection",
    "Dataset",
    "InputSpec",
    "Preprocess",
    "Source",
    "Take",
    "drop_overlap",
    "load_preprocess",
    "open_dataset",
    "split",
]

Opener = Callable[[DataSection, Mapping[str, InputSpec], int | None], Dataset]

READERS: dict[str, Opener] = {
    "images": open_images,
    "arrays": open_arrays,
}


def open_dataset(
    section: DataSection, inputs: Mapping[str, InputSpec], *, workers: int | None = None
) -> Dataset:
    """Open the data a recipe section names, for the model's inputs.

    Args:
        section: the recipe's words, paths absolute.
        inputs: the model's inputs by name.
        workers: how many threads decode images; 0 decodes where the batches are asked for, None
            is one per usable core.

    Raises:
        DataError: a file is missing or damaged, or the data does not fit the inputs.
    """
    dataset = READERS[section.reader](section, inputs, workers)
    if dataset.labels is not None and LABEL in inputs:
        raise DataError(
            f"the model has an input called `{LABEL}`, the name batches keep for the labels; "
            "rename the model's input, or give the data without labels"
        )
    return dataset
