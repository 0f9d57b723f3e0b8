"""The protocol of a reader, and the keys of a data section that a reader sees."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec
from qtool.data.preprocess import Preprocess
from qtool.data.source import Opening

T = TypeVar("T")


class Section(Protocol):
    """The keys of a data section that readers see; ``config.DataSection`` has them."""

    @property
    def labels(self) -> str | None:
        """The label file, or the folder of label maps."""

    @property
    def preprocess(self) -> str | Preprocess | None:
        """The preprocessing of images."""

    @property
    def class_order(self) -> tuple[str, ...] | None:
        """Class names in the order of the model's outputs."""

    @property
    def code(self) -> str | None:
        """The folder that is searched first for modules of the user."""

    def reader_options(self, kind: type[T]) -> T:
        """Return the value of the reader's key, which is of type ``kind``."""

    def choose(self, total: int) -> tuple[list[int], tuple[str, ...]]:
        """Return the positions of the samples to read out of ``total``, and notes."""


@runtime_checkable
class Reader(Protocol):
    """An entry of READERS: opens one kind of data, and describes its key in a data section.

    Attributes:
        description: one line for the recipe's schema.
        options: the type of the key's value: a pydantic model, or str.
        source: the option that names the file, the folder or the function.
        short_form: whether a plain string may stand for ``source`` alone.
        paths: the options that are paths; the recipe makes them absolute.
        uses: other keys of the section that the reader uses, such as labels.
        instead: a key that the reader does not use -> the remedy that the error message names.
        synthetic: the samples are made up, so that only ``calibrate`` may name the reader.
    """

    description: ClassVar[str]
    options: ClassVar[type]
    source: ClassVar[str]
    short_form: ClassVar[bool]
    paths: ClassVar[tuple[str, ...]]
    uses: ClassVar[tuple[str, ...]]
    instead: ClassVar[Mapping[str, str]]
    synthetic: ClassVar[bool] = False

    def batch_axes(
        self, section: Section, inputs: Mapping[str, InputSpec]
    ) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
        """Choose the batch axis of every input by the data, where the data shows it.

        Args:
            section: the section of the recipe, its paths absolute.
            inputs: those that the data feeds, with the axes that the model and the recipe suggest.

        Returns:
            The inputs, and notes for the report.
        """
        return dict(inputs), ()

    def first_file(
        self, section: Section, inputs: Mapping[str, InputSpec]
    ) -> dict[str, np.ndarray] | None:
        """Return what the first of several files holds for the inputs, all its samples together.

        Args:
            section: the section of the recipe, its paths absolute.
            inputs: those that the data feeds.

        Returns:
            Arrays as one call reads them; None where samples are not saved so.
        """
        return None

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the data that a section names; its source yields the samples first.

        Args:
            section: the section of the recipe, its paths absolute.
            inputs: the model's inputs that the data feeds, by name.
            opening: settings that are not the recipe's.

        Raises:
            RecipeError: the section names code, which is not trusted.
            DataError: a file is missing or damaged, or the data does not fit the inputs.
        """
