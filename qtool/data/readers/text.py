"""The text reader: sentences of a table, converted to token ids."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec, cast, show_shape
from qtool.data.labels import number_labels
from qtool.data.reader import Reader, Section
from qtool.data.reader_options import ROLES, Text
from qtool.data.readers.table import Table, read_table
from qtool.data.readers.vocabulary import Encoded, Encoder, load_encoder
from qtool.data.source import Batch, Opening, row_digest
from qtool.errors import DataError, suggest


@dataclass(frozen=True, eq=False)
class TextSource:
    """Encoded sentences that become up to four model inputs.

    Attributes:
        rows: the samples' tokens.
        roles: model input -> the array that feeds it, one of ROLES.
        specs: the model's inputs by name.
        encoder: gives the ids and the side of padding.
        length: tokens of every row.
        where: the file, for messages.
    """

    rows: tuple[Encoded, ...]
    roles: Mapping[str, str]
    specs: Mapping[str, InputSpec]
    encoder: Encoder
    length: int
    where: str

    def stream(self, positions: Sequence[int], size: int) -> Iterator[Batch]:
        """Yield batches of at most ``size`` padded rows, in order."""
        for start in range(0, len(positions), size):
            yield self._batch([self.rows[k] for k in positions[start : start + size]])

    def digest(self, position: int) -> str:
        """Return the sha256 over the row of every input, as the model gets it."""
        return row_digest(self._batch([self.rows[position]]))

    def _batch(self, rows: Sequence[Encoded]) -> Batch:
        shape = (len(rows), self.length)
        filled = {
            "input_ids": np.full(shape, self.encoder.pad or 0, np.int64),
            "attention_mask": np.zeros(shape, np.bool_),  # a truth value fits every dtype
            "token_type_ids": np.full(shape, self.encoder.pad_type, np.uint8),
            "position_ids": np.broadcast_to(np.arange(self.length), shape),
        }
        for number, row in enumerate(rows):
            count = len(row.ids)
            place = slice(self.length - count, None) if self.encoder.left else slice(count)
            filled["input_ids"][number, place] = row.ids
            filled["attention_mask"][number, place] = True
            filled["token_type_ids"][number, place] = row.types
        return {
            name: cast(filled[role], self.specs[name], f"{self.where}: {role}")
            for name, role in self.roles.items()
        }


class TextReader(Reader):
    """Open a .tsv, .csv or .jsonl file of sentences.

    The inputs input_ids, attention_mask, token_type_ids and position_ids are filled by name.
    """

    description = "A table of sentences and a vocabulary."
    options = Text
    source = "path"
    short_form = False  # a tokenizer is always needed too
    paths = ("path", "tokenizer")
    uses = ("classes",)
    instead: ClassVar[Mapping[str, str]] = {
        "labels": "name the label column instead: `text: {path: ..., label: column}`"
    }

    def __call__(
        self, section: Section, inputs: Mapping[str, InputSpec], opening: Opening
    ) -> Dataset:
        """Open the file; see :class:`qtool.data.reader.Reader`."""
        options = section.reader_options(Text)
        roles, notes = _roles(options, inputs)
        length = _length(options, roles, inputs)
        table = read_table(options)
        encoder = load_encoder(options, length)
        chosen, more = section.choose(len(table.texts))
        rows = [_encode(options, table, encoder, k) for k in chosen]
        if encoder.pad is None and any(len(row.ids) < length for row in rows):
            raise DataError(
                f"{options.tokenizer}: has no token for padding, and samples are shorter than "
                f"{length} tokens; expected [PAD] in the vocabulary, or padding saved in the "
                "tokenizer.json"
            )
        source = TextSource(tuple(rows), roles, inputs, encoder, length, options.path)
        labels: np.ndarray | None = None
        classes: tuple[str, ...] | None = None
        numbered: tuple[str, ...] = ()
        if table.labels is not None:
            own = [table.labels[k] for k in chosen]
            labels, classes, numbered = number_labels(
                own, table.labels, options.path, section.class_order
            )
        losses = _losses(rows, encoder, length)
        return Dataset(
            tuple(f"{Path(options.path).name}:{table.lines[k]}" for k in chosen),
            source,
            tuple(range(len(chosen))),
            labels,
            classes,
            (*notes, *table.notes, *encoder.notes, *numbered, *more, *losses),
            guesses={"text": options.model_copy(update=dict(table.columns))},
        )


def _encode(options: Text, table: Table, encoder: Encoder, k: int) -> Encoded:
    row = encoder.encode(table.texts[k], None if table.pairs is None else table.pairs[k])
    if not row.ids:
        raise DataError(
            f"{options.path}:{table.lines[k]}: the sentence has no token; expected at least one: "
            "remove the line"
        )
    return row


def _losses(rows: Sequence[Encoded], encoder: Encoder, length: int) -> tuple[str, ...]:
    """Return notes about cut sentences and unknown words."""
    cut = sum(row.cut for row in rows)
    notes = [f"{cut} of {len(rows)} sentences are cut to {length} tokens"] if cut else []
    tokens = sum(len(row.ids) for row in rows)
    unknown = sum(row.ids.count(encoder.unknown) for row in rows if encoder.unknown is not None)
    if unknown:
        notes.append(f"{100 * unknown / tokens:.1f} % of the tokens are unknown to the vocabulary")
    return tuple(notes)


def _roles(
    options: Text, inputs: Mapping[str, InputSpec]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Match inputs with roles: (model input -> role, notes about assumptions)."""
    for name in options.inputs:
        if name not in inputs:
            raise DataError(
                f"text.inputs names `{name}`, but the model's inputs are {', '.join(inputs)}"
                f"{suggest(name, inputs)}; expected one of them"
            )
    roles: dict[str, str] = dict(options.inputs)
    for name in inputs:
        if name not in roles and name in ROLES:
            roles[name] = name
    missing = [name for name in inputs if name not in roles]
    if missing == list(inputs) and len(missing) == 1:
        note = f"the token ids feed the model's only input `{missing[0]}`"
        return {missing[0]: "input_ids"}, (note,)
    if missing:
        raise DataError(
            f"{options.path}: nothing feeds the model's input {inputs[missing[0]].describe()}; "
            f"expected one of {', '.join(ROLES)}: set `text: {{inputs: {{{missing[0]}: ..}}}}`"
        )
    return roles, ()


def _length(options: Text, roles: Mapping[str, str], inputs: Mapping[str, InputSpec]) -> int:
    """Return the tokens of every sample: the recipe's number, else that of the model's inputs."""
    fixed = (inputs[name].sample[0] for name in roles if len(inputs[name].sample) == 1)
    model_length = next((size for size in fixed if isinstance(size, int)), None)
    length = options.length or model_length
    if length is None:
        open_ = ", ".join(inputs[name].describe() for name in roles)
        raise DataError(
            f"{options.path}: the model leaves the number of tokens open ({open_}), and sentences "
            "differ in it; set `text: {length: 128}`"
        )
    for name in roles:
        if not inputs[name].fits((length,)):
            raise DataError(
                f"{options.path}: samples have {show_shape((length,))} tokens; the model's input "
                f"{inputs[name].describe()} expects another shape: "
                + (f"set `text: {{length: {model_length}}}`" if model_length else "use `arrays`")
            )
    return length
