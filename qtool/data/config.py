"""The recipe's data sections: what ``calibrate``, ``evaluate`` and ``qat`` say about data."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qtool.data.preprocess import Preprocess, check_name
from qtool.data.reader_options import Python, Text, Wav
from qtool.errors import DataError

READER_KEYS = ("images", "arrays", "text", "wav", "python")
"""The keys that name a reader; a section has exactly one."""

_LABELS_OF = {
    "arrays": "name the label array instead: `arrays: {path: ..., label: y}`",
    "text": "name the label column instead: `text: {path: ..., label: column}`",
    "python": "yield the labels in the batches instead, as `label`",
}


class Take(BaseModel):
    """Which samples, by sorted position, before ``count``: ``offset``, ``offset + every``, ..."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    every: Annotated[int, Field(ge=1)] = 1
    """Keep one sample in this many."""
    offset: Annotated[int, Field(ge=0)] = 0
    """The first position kept."""


class Arrays(BaseModel):
    """A .npy or .npz file, or a folder of .npz files with one batch each; samples first."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str
    """The file or folder."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Model input to array name; absent: arrays called as the inputs."""
    label: str | None = None
    """The array of labels; absent: label, labels, y or target, if there is one."""


class DataSection(BaseModel):
    """Where samples come from and how they become model inputs; exactly one reader is named.

    All paths are absolute by the time they are read; the recipe resolves them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    images: str | None = None
    """A folder of images, or of class folders."""
    arrays: Arrays | None = None
    """A .npy or .npz file, or a folder of .npz files; or a mapping with its path."""
    text: Text | None = None
    """A table of sentences and a vocabulary."""
    wav: Wav | None = None
    """A folder of .wav files, or of class folders; or a mapping with its path."""
    python: Python | None = None
    """module:function that yields batches, or a mapping with it; needs --trust-code."""
    code: str | None = None
    """The folder where modules of your own are looked for first; absent: the recipe's."""
    count: Annotated[int, Field(gt=0)] | None = None
    """How many samples at most, evenly spaced by sorted position."""
    take: Take = Take()
    """Which samples by sorted position, before count."""
    preprocess: str | Preprocess | None = None
    """A name in configs/preprocess, a .yaml file, or inline; absent: guessed, and said."""
    labels: str | None = None
    """A CSV, TSV or JSON file of samples and labels, or a folder of label maps as PNG."""
    allow_overlap: bool = False
    """Go on where many of these samples are also evaluated."""

    @field_validator("arrays", "wav", mode="before")
    @classmethod
    def _path_is_enough(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("python", mode="before")
    @classmethod
    def _name_is_enough(cls, given: Any) -> Any:
        return {"function": given} if isinstance(given, str) else given

    @field_validator("preprocess")
    @classmethod
    def _known_preprocess(cls, given: str | Preprocess | None) -> str | Preprocess | None:
        return check_name(given) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> "DataSection":
        named = [key for key in READER_KEYS if getattr(self, key) is not None]
        if len(named) != 1:
            found = " and ".join(f"`{key}`" for key in named) or "none"
            known = ", ".join(f"`{key}`" for key in READER_KEYS)
            raise ValueError(f"found {found}; expected exactly one reader: one of {known}")
        if self.preprocess is not None and self.images is None:
            raise ValueError(
                f"`preprocess` belongs to `images`, `{named[0]}` has no use for it: remove it"
            )
        if self.labels is not None and named[0] not in ("images", "wav"):
            raise ValueError(f"`labels` belongs to `images` and `wav`; {_LABELS_OF[named[0]]}")
        return self

    @property
    def reader(self) -> str:
        """The name of the one reader this section uses."""
        return next(key for key in READER_KEYS if getattr(self, key) is not None)

    def choose(self, total: int) -> tuple[list[int], tuple[str, ...]]:
        """Which of ``total`` sorted samples are read: ``take`` first, then ``count`` evenly spaced.

        Evenly spaced and not the first, because samples in class folders are sorted by class.

        Returns:
            The positions, ascending, and what to announce in the report.

        Raises:
            DataError: nothing is left.
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
        given = getattr(self, self.reader)
        return str(getattr(given, "path", None) or getattr(given, "function", given))
