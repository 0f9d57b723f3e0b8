"""The recipe's data sections: the keys of ``calibrate``, ``evaluate`` and ``qat`` about data."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from qtool.data.class_names import check_classes, read_classes
from qtool.data.preprocess import Preprocess, check_name
from qtool.data.reader import Reader
from qtool.data.readers import READERS
from qtool.errors import DataError

READER_KEYS = tuple(READERS)
"""The keys that name a reader; a section has exactly one."""

T = TypeVar("T")


class Take(BaseModel):
    """A choice of samples by sorted position, before ``count``: offset, offset + every, ..."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    every: Annotated[int, Field(ge=1)] = 1
    """Use one sample in this many."""
    offset: Annotated[int, Field(ge=0)] = 0
    """The first position used."""


def _reader_field(reader: Reader) -> tuple[Any, Any]:
    """Return type and default of a reader's key, as ``create_model`` takes them."""

    def expand(value: Any) -> Any:
        is_short = reader.short_form and isinstance(value, str)
        return {reader.source: value} if is_short else value

    options: Any = reader.options
    kind = Annotated[options | None, BeforeValidator(expand)]
    return kind, Field(default=None, description=reader.description)


_ReaderKeys: Any = create_model(  # type: ignore[call-overload]
    "_ReaderKeys", **{name: _reader_field(reader) for name, reader in READERS.items()}
)
"""One optional key for each reader, so that a new reader is one more line in READERS."""


class DataSection(_ReaderKeys):
    """The samples to read, and how they become model inputs; exactly one reader is named.

    All paths are absolute by the time they are read; the recipe resolves them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    code: str | None = None
    """The folder where modules of your own are looked for first; absent: the recipe's."""
    count: Annotated[int, Field(gt=0)] | None = None
    """How many samples at most, evenly spaced by sorted position."""
    take: Take = Take()
    """Which samples by sorted position, before count."""
    preprocess: str | Preprocess | None = None
    """A name in configs/preprocess, a .yaml file, or inline; absent: guessed, with a note."""
    labels: str | None = None
    """A CSV, TSV or JSON file of samples and labels, or a folder of label maps as PNG."""
    classes: str | Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Class names in the order of the model's outputs: a list, or a file with one a line."""
    loop: dict[str, str] | None = None
    """Output to input: states that the next call of a stream reads; a file is a stream."""
    allow_overlap: bool = False
    """Go on where many of these samples are also evaluated."""

    @field_validator("preprocess")
    @classmethod
    def _check_preprocess(cls, value: str | Preprocess | None) -> str | Preprocess | None:
        return check_name(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> "DataSection":
        named = [key for key in READER_KEYS if getattr(self, key) is not None]
        if len(named) != 1:
            listed = " and ".join(f"`{key}`" for key in named) or "none"
            expected = ", ".join(f"`{key}`" for key in READER_KEYS)
            raise ValueError(f"found {listed}; expected exactly one reader: one of {expected}")
        reader = READERS[named[0]]
        # `code` is not checked: a metric of the user's own needs it beside any reader.
        for key in ("preprocess", "labels", "classes", "loop"):
            if getattr(self, key) is not None and key not in reader.uses:
                users = [f"`{name}`" for name, other in READERS.items() if key in other.uses]
                remedy = reader.instead.get(key, f"`{named[0]}` does not use it: remove it")
                raise ValueError(f"`{key}` belongs to {' and '.join(users)}; {remedy}")
        return self

    @field_validator("loop")
    @classmethod
    def _check_loop(cls, loop: dict[str, str] | None) -> dict[str, str] | None:
        fed = list((loop or {}).values())
        for name in fed:
            if fed.count(name) > 1:
                raise ValueError(f"two outputs feed the input {name}; expected one for each input")
        return loop or None

    @property
    def class_order(self) -> tuple[str, ...] | None:
        """The names of ``classes``, read where it is a file; None without the key.

        Raises:
            DataError: the file cannot be read, or a name occurs twice.
        """
        if self.classes is None:
            return None
        if isinstance(self.classes, str):
            return read_classes(Path(self.classes))
        return check_classes(self.classes, "classes")

    @property
    def reader(self) -> str:
        """The name of the one reader this section uses."""
        return next(key for key in READER_KEYS if getattr(self, key) is not None)

    def reader_options(self, kind: type[T]) -> T:
        """Return the value of the reader's key.

        Args:
            kind: its type, the reader's ``options``.

        Raises:
            TypeError: it is of another type, so the section names another reader.
        """
        value = getattr(self, self.reader)
        if not isinstance(value, kind):
            raise TypeError(f"`{self.reader}` is {type(value).__name__}, expected {kind.__name__}")
        return value

    def choose(self, total: int) -> tuple[list[int], tuple[str, ...]]:
        """Choose the samples to read out of ``total`` sorted ones.

        ``take`` comes first, then ``count`` of its samples, evenly spaced. Not the first ``count``,
        because samples in class folders are sorted by class.

        Args:
            total: how many samples there are.

        Returns:
            The positions, ascending, and notes for the report.

        Raises:
            DataError: ``take`` leaves no sample.
        """
        positions = list(range(self.take.offset, total, self.take.every))
        if not positions:
            raise DataError(
                f"{self.where}: `take: {{every: {self.take.every}, offset: {self.take.offset}}}` "
                f"leaves none of {total} samples; expected at least one: lower `offset`"
            )
        if self.count is None or self.count == len(positions):
            return positions, ()
        if self.count > len(positions):
            note = f"count {self.count}: {self.where} has {len(positions)} samples; all are used"
            return positions, (note,)
        have = len(positions)
        chosen = [positions[index * have // self.count] for index in range(self.count)]
        note = f"{self.count} of {have} samples of {self.where}, evenly spaced by sorted position"
        return chosen, (note,)

    @property
    def where(self) -> str:
        """The path, or the function, the samples come from."""
        value = getattr(self, self.reader)
        return str(value if isinstance(value, str) else getattr(value, READERS[self.reader].source))
