"""The text reader: columns, vocabularies, padding, and which input gets what."""

import json

import numpy as np
import pytest

from qtool.data import DataSection, InputSpec, open_dataset
from qtool.errors import DataError

VOCAB = "[PAD]\n[UNK]\n[CLS]\nthe\nfilm\nis\ngood\n"
IDS = InputSpec("input_ids", ("N", 6), "int64")
MASK = InputSpec("attention_mask", ("N", 6), "int64")
BOTH = {"input_ids": IDS, "attention_mask": MASK}


def write(folder, content, name="f.tsv", vocabulary=VOCAB):
    (folder / name).write_text(content, encoding="utf-8")
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    return {"path": str(folder / name), "tokenizer": str(folder / "vocab.txt")}


def read(options, inputs=BOTH, **section):
    return open_dataset(DataSection(text=options, **section), inputs)


def only(data, name="input_ids"):
    return np.concatenate([batch[name] for batch in data.batches(2)])


def test_words_are_looked_up_cut_and_padded(tmp_path):
    options = write(tmp_path, "The film  is bad\t0\nis is is is is is is\t1\n")
    data = read(options)
    assert only(data).tolist() == [[2, 3, 4, 5, 1, 0], [2, 5, 5, 5, 5, 5]]
    assert only(data, "attention_mask").tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    assert only(data).dtype == np.int64
    assert data.labels.tolist() == [0, 1] and data.names == ("f.tsv:1", "f.tsv:2")
    notes = "\n".join(data.notes)
    assert "column 0" in notes and "taken for the text" in notes and "lower-cased" in notes
    assert "1 of 2 sentences are cut to 6 tokens" in notes and "9.1 % of the tokens" in notes


def test_a_vocabulary_with_separators_gets_them_and_pairs_get_types(tmp_path):
    vocabulary = VOCAB + "[SEP]\n"
    options = write(tmp_path, "a\tb\nthe film\tgood\n", vocabulary=vocabulary)
    inputs = BOTH | {"token_type_ids": InputSpec("token_type_ids", ("N", 6), "int32")}
    data = read({**options, "text": "a", "pair": "b"}, inputs)
    assert only(data).tolist() == [[2, 3, 4, 7, 6, 7]]
    assert only(data, "token_type_ids").tolist() == [[0, 0, 0, 0, 1, 1]]
    assert data.labels is None
    short = {"input_ids": InputSpec("input_ids", ("N", 3), "int64")}
    assert only(read({**options, "text": "a"}, short)).tolist() == [[2, 3, 7]]


def test_capitals_in_the_vocabulary_keep_those_of_the_text(tmp_path):
    options = write(tmp_path, "The the\t0\n", vocabulary=VOCAB + "The\n")
    assert only(read(options))[0, :3].tolist() == [2, 7, 3]
    assert only(read({**options, "lower": True}))[0, :3].tolist() == [2, 3, 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.tsv", 'label\tsentence\nx\tthe "film"\ny\tis\n'),
        ("f.csv", 'label,sentence\r\nx,"the ""film"""\r\n\r\ny,is\r\n'),
        (
            "f.jsonl",
            '{"label": "x", "sentence": "the \\"film\\""}\n\n{"label":"y","sentence":"is"}',
        ),
    ],
)
def test_the_three_kinds_of_files_say_the_same(tmp_path, name, content):
    data = read(write(tmp_path, content, name))
    assert only(data).tolist() == [[2, 3, 1, 0, 0, 0], [2, 5, 0, 0, 0, 0]]
    assert data.labels.tolist() == [0, 1] and data.classes == ("x", "y")


def test_columns_by_number_and_labels_over_the_whole_file(tmp_path):
    options = write(tmp_path, "7\tx\tgood\tb\n8\tx\tthe\ta\n9\tx\tis\tc\n")
    data = read({**options, "text": 2, "label": 3}, take={"every": 2, "offset": 0})
    assert only(data)[:, 1].tolist() == [6, 5]
    assert data.labels.tolist() == [1, 2] and data.classes == ("a", "b", "c")


def test_lengths_names_and_types_of_inputs(tmp_path):
    options = write(tmp_path, "good\t1\n")
    lone = {"tokens": InputSpec("tokens", ("N", "T"), "int32")}
    with pytest.raises(DataError, match=r"leaves the number of tokens open.*length: 128"):
        read(options, lone)
    data = read({**options, "length": 3}, lone)
    assert only(data, "tokens").tolist() == [[2, 6, 0]] and only(data, "tokens").dtype == np.int32
    assert "the token ids feed the model's only input `tokens`" in data.notes
    inputs = {
        "a": InputSpec("a", ("N", 3), "int64"),
        "m": InputSpec("m", ("N", 3), "float32"),
        "position_ids": InputSpec("position_ids", ("N", 3), "int64"),
    }
    named = {**options, "inputs": {"a": "input_ids", "m": "attention_mask"}}
    data = read(named, inputs)
    assert only(data, "m").tolist() == [[1, 1, 0]]
    assert only(data, "position_ids").tolist() == [[0, 1, 2]]
    with pytest.raises(DataError, match=r"nothing feeds the model's input `a`.*inputs: \{a: "):
        read(options, inputs)
    with pytest.raises(DataError, match="`b`, but the model's inputs are a, m"):
        read({**options, "inputs": {"b": "input_ids"}}, inputs)
    with pytest.raises(DataError, match=r"`input_ids` int64 \[N, 6\] expects another shape.*6"):
        read({**options, "length": 9})


def test_equal_samples_have_equal_digests_and_the_vocabulary_counts(tmp_path):
    options = write(tmp_path, "the film\t0\nTHE FILM\t1\ngood\t0\n")
    first, second, third = read(options).digests()
    assert first == second != third
    write(tmp_path, "the film\t0\n", vocabulary=VOCAB.replace("the", "da"))
    assert read(options).digests()[0] != first


def tokenizer(path, left=False, separator=False):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: k for k, word in enumerate(VOCAB.split())}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    around = "[CLS] $A [CLS]" if separator else "[CLS] $A"
    made.post_processor = tokenizers.processors.TemplateProcessing(around, None, [("[CLS]", 2)])
    made.enable_padding(pad_id=0, direction="left" if left else "right")
    made.save(str(path))
    return str(path)


@pytest.mark.parametrize("left", [False, True])
def test_a_tokenizer_json_says_the_same_as_its_words(tmp_path, left):
    options = write(tmp_path, "The film is bad\t0\nis is is is is is is\t1\n")
    path = tokenizer(tmp_path / "tokenizer.json", left=left)
    data = read({**options, "tokenizer": path})
    first = [2, 3, 4, 5, 1, 0]
    assert only(data).tolist() == [first[-1:] + first[:-1] if left else first, [2, 5, 5, 5, 5, 5]]
    assert "1 of 2 sentences are cut to 6 tokens" in data.notes
    assert only(data).tolist() == only(read(options)).tolist() or left


def test_a_tokenizer_json_without_its_package_names_the_extra(tmp_path, monkeypatch):
    options = write(tmp_path, "the\t0\n")
    (tmp_path / "tokenizer.json").write_text(json.dumps({}))
    options["tokenizer"] = str(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="cannot be read as a tokenizer"):
        read(options)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'qtool\[text\]'"):
        read(options)


def test_a_tokenizer_that_needs_more_than_the_length_or_gets_no_text(tmp_path):
    options = write(tmp_path, '{"text": "the"}\n', "f.jsonl")
    options["tokenizer"] = tokenizer(tmp_path / "tokenizer.json", separator=True)
    short = {"input_ids": InputSpec("input_ids", ("N", 1), "int64")}
    with pytest.raises(DataError, match=r"special tokens alone are \d; expected at most 1"):
        read(options, short)
    write(tmp_path, '{"text": "\\ud800"}\n', "f.jsonl")
    with pytest.raises(DataError, match="cannot encode"):
        read(options)
