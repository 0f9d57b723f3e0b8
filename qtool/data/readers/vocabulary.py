"""From sentences to token ids: a tokenizers file, or a plain list of words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtool.data.reader_options import Text
from qtool.errors import DataError

START, END, PAD, UNKNOWN = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
PAD_NAMES = (PAD, "<pad>", "<PAD>", "<|padding|>")
"""Tokens that pad short samples where a tokenizer.json names no padding."""


@dataclass(frozen=True)
class Encoded:
    """One sample's tokens, not padded.

    Attributes:
        ids: token ids.
        types: 0 for tokens of the first sentence, 1 for those of the second.
        cut: whether tokens were left out to keep to the length.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    cut: bool


@dataclass(frozen=True)
class Encoder:
    """The conversion of sentences to token ids.

    Attributes:
        encode: (sentence, second sentence or None) -> tokens, at most the length of the samples.
        pad: the id that pads short samples; None where the file names none.
        pad_type: the token type of padding.
        left: whether padding comes first.
        unknown: the id of unknown words, or None.
        notes: assumptions, for the report.
    """

    encode: Callable[[str, str | None], Encoded]
    pad: int | None
    pad_type: int
    left: bool
    unknown: int | None
    notes: tuple[str, ...]


def load_encoder(options: Text, length: int) -> Encoder:
    """Read the tokenizer that a recipe names.

    Args:
        options: name the file.
        length: tokens of a sample at most; longer ones are cut.

    Raises:
        DataError: the file cannot be read, or qtool[text] is needed and not installed.
    """
    path = Path(options.tokenizer)
    if path.suffix.lower() == ".json":
        if options.lower is not None:
            raise DataError(
                f"{path}: a tokenizer.json lower-cases by its own rules; remove `text: {{lower}}`"
            )
        return _from_tokenizers(path, length)
    if path.suffix.lower() == ".txt":
        return _from_words(path, options.lower, length)
    raise DataError(
        f"{path}: expected a tokenizer.json, or a .txt vocabulary with one word per line"
    )


def _from_words(path: Path, lower: bool | None, length: int) -> Encoder:
    """Make an encoder of words between blanks; a word's id is its line in the list, from 0.

    The rule, taken from SST-2 models: [CLS] comes first and [SEP] after each sentence where the
    vocabulary has them, unknown words are [UNK], longer samples are cut at the end, padding is
    [PAD].
    """
    words = _words(path)
    ids = {word: number for number, word in enumerate(words)}
    capital = next(
        (w for w in words if w != w.lower() and not (w[:1] == "[" and w[-1:] == "]")), ""
    )
    notes = []
    if lower is None:
        lower = not capital
        reason = f'has "{capital}": nothing' if capital else "has no capital letter: sentences"
        notes.append(f"{path} {reason} {'is' if capital else 'are'} lower-cased")
    pad, unknown = ids.get(PAD), ids[UNKNOWN]
    start, end = ids.get(START), ids.get(END)
    special = [f"{START} first"] * (start is not None) + [f"{END} last"] * (end is not None)
    notes.append(f"{path}: words between blanks, {', '.join([*special, UNKNOWN])} for the unknown")

    def encode(text: str, pair: str | None) -> Encoded:
        tokens = [] if start is None else [start]
        types = [0] * len(tokens)
        for number, sentence in enumerate([text] if pair is None else [text, pair]):
            split = (sentence.lower() if lower else sentence).split()
            part = [ids.get(word, unknown) for word in split] + ([] if end is None else [end])
            tokens += part
            types += [number] * len(part)
        if len(tokens) <= length:
            return Encoded(tuple(tokens), tuple(types), False)
        cut = tokens[:length] if end is None else [*tokens[: length - 1], end]
        return Encoded(tuple(cut), tuple(types[:length]), True)

    return Encoder(encode, pad, 0, False, unknown, tuple(notes))


def _words(path: Path) -> list[str]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a file") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; expected one word per line in UTF-8"
        ) from error
    words = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    seen: dict[str, int] = {}
    for number, word in enumerate(words, start=1):
        if not word or word in seen:
            what = f'"{word}" is in line {seen[word]} too' if word else "the line is empty"
            raise DataError(
                f"{path}:{number}: {what}; expected one word per line, each once: correct the file"
            )
        seen[word] = number
    if UNKNOWN not in seen:
        raise DataError(
            f"{path}: has no {UNKNOWN}; expected it among the words, for those that are missing"
        )
    if any(word.startswith("##") for word in words):
        raise DataError(
            f"{path}: is a WordPiece vocabulary (words with ##), which needs its own splitting; "
            "expected whole words: name the model's tokenizer.json instead"
        )
    return words


def _from_tokenizers(path: Path, length: int) -> Encoder:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(
            f"{path}: a tokenizer.json needs the package tokenizers, which is not installed; "
            "expected it: pip install 'qtool[text]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{path}: cannot be read as a tokenizer ({error}); expected a tokenizer.json: "
            "save it with the tokenizers library"
        ) from error
    padding = tokenizer.padding or {}
    named = (tokenizer.token_to_id(name) for name in PAD_NAMES)
    pad = padding.get("pad_id", next((number for number in named if number is not None), None))
    tokenizer.no_padding()
    try:
        tokenizer.enable_truncation(length)
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{path}: cannot cut to {length} tokens ({error}); set a larger `text: {{length}}`"
        ) from error

    def encode(text: str, pair: str | None) -> Encoded:
        try:
            encoding = tokenizer.encode(text, pair)
        except Exception as error:  # the library raises bare Exception
            raise DataError(
                f"{path}: cannot encode {text[:40]!r} ({error}); expected text that it can encode: "
                "remove the sentence"
            ) from error
        if len(encoding.ids) > length:
            raise DataError(
                f"{path}: its special tokens alone are {len(encoding.ids)}; expected at most "
                f"{length} tokens: set a larger `text: {{length}}`"
            )
        return Encoded(tuple(encoding.ids), tuple(encoding.type_ids), bool(encoding.overflowing))

    return Encoder(
        encode,
        pad,
        int(padding.get("pad_type_id", 0)),
        padding.get("direction") == "left",
        tokenizer.token_to_id(UNKNOWN),
        (),
    )
