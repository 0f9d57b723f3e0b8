"""Damaged tables, vocabularies and recordings: one sentence with place and remedy."""

import struct
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from qtool.data import DataSection, InputSpec, drop_unusable, open_dataset
from qtool.errors import DataError

IDS = {"input_ids": InputSpec("input_ids", ("N", 4), "int64")}
SOUND = {"input": InputSpec("input", ("N", 64), "float32")}


def refused(call, where, words):
    with pytest.raises(DataError, match=words) as caught:
        call()
    text = str(caught.value)
    assert str(where) in text and "expected" in text and "\n" not in text


def table(folder, content, name="f.tsv", vocabulary="[PAD]\n[UNK]\na\n", **given):
    path, words = folder / name, folder / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    words.write_bytes(vocabulary if isinstance(vocabulary, bytes) else vocabulary.encode())
    section = DataSection(text={"path": str(path), "tokenizer": str(words), **given})
    return list(open_dataset(section, IDS).batches(2))


@pytest.mark.parametrize(
    ("name", "content", "given", "line", "words"),
    [
        ("f.tsv", b"a\t0\n\xff\xfe\t1\n", {}, ":2", "not UTF-8.*convert it"),
        ("f.tsv", "a\t0\na b\na\t1\n", {}, ":2", "found 1 columns, expected 2 as in line 1"),
        ("f.tsv", "a\t0\na\t0\t1\n", {}, ":2", "found 3 columns, expected 2"),
        ("f.tsv", "", {}, "", "holds no row"),
        ("f.tsv", "text\tlabel\n", {}, "", "holds no row"),
        ("f.tsv", "text\tlabel\na\t0\n", {"text": "txt"}, "", "no column 'txt'; did you mean"),
        ("f.tsv", "a\t0\n", {"text": 2}, "", "no column 2; expected one of 0, 1"),
        ("f.tsv", "a\t0\n", {"text": 0, "label": "y"}, "", "mix names and numbers"),
        ("f.tsv", "text\ttext\na\t0\n", {}, ":1", "two columns have one name"),
        ("f.tsv", "x\ty\na\t0\n", {"label": "y"}, "", "no column is called text or sentence"),
        ("f.tsv", " \t0\n", {}, ":1", "is empty; expected text"),
        ("f.tsv", "a\t \n", {}, ":1", "is empty; expected text"),
        ("f.csv", 'text,label\na,0\n"a,1\n', {}, ":3", "not CSV"),
        ("f.csv", 'text,label\n"a"b,0\n', {}, ":2", "not CSV.*doubled"),
        ("f.csv", "a" * 200_000 + ",0\n", {}, ":1", "not CSV"),
        ("f.jsonl", '{"text": "a"}\n{"text": \n', {}, ":2", "not JSON"),
        ("f.jsonl", '{"text": "a"}\n[1]\n', {}, ":2", "found a list, expected an object"),
        ("f.jsonl", '{"text": "a"}\n{"txt": "a"}\n', {}, ":2", "has no 'text'"),
        ("f.jsonl", '{"text": 3}\n', {}, ":1", "'text' is 3; expected text"),
        ("f.jsonl", '{"text": "a", "label": 1.5}\n', {}, ":1", "1.5; expected a class number"),
        ("f.jsonl", "[" * 100_000 + "\n", {}, ":1", "not JSON"),
        ("f.xlsx", "a\t0\n", {}, "", "expected a .tsv, .csv, .jsonl file"),
    ],
)
def test_damaged_tables(tmp_path, name, content, given, line, words):
    refused(lambda: table(tmp_path, content, name, **given), f"{tmp_path / name}{line}", words)


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        (b"[PAD]\n[UNK]\n\xff\n", "byte 12 is not UTF-8"),
        ("[PAD]\n[UNK]\n\na\n", "vocab.txt:3: the line is empty"),
        ("[UNK]\na\na\n", 'vocab.txt:3: "a" is in line 2 too'),
        ("[PAD]\na\n", "has no .UNK."),
        ("[PAD]\n[UNK]\n##ing\n", "is a WordPiece vocabulary.*tokenizer.json instead"),
        ("[UNK]\na\n", "no token for padding"),
    ],
)
def test_damaged_vocabularies(tmp_path, vocabulary, words):
    path = tmp_path / "vocab.txt"
    refused(lambda: table(tmp_path, "a\t0\n", vocabulary=vocabulary), path, words)


def test_files_that_are_not_there(tmp_path):
    section = DataSection(text={"path": str(tmp_path / "f.tsv"), "tokenizer": "/v.bin"})
    refused(lambda: open_dataset(section, IDS), tmp_path / "f.tsv", "cannot be read")
    (tmp_path / "f.tsv").write_text("a\t0\n")
    refused(lambda: open_dataset(section, IDS), "/v.bin", "expected a tokenizer.json, or a .txt")
    section = DataSection(text={"path": str(tmp_path / "f.tsv"), "tokenizer": "/none.txt"})
    refused(lambda: open_dataset(section, IDS), "/none.txt", "cannot be read")
    section = DataSection(wav=str(tmp_path / "none"))
    refused(lambda: open_dataset(section, SOUND), tmp_path / "none", "a folder of recordings")


def test_labels_beyond_int64_are_class_names(tmp_path):
    (batch,) = table(tmp_path, f"a\t{10**30}\na\t1\n")
    assert batch["label"].tolist() == [1, 0]


def sound(folder, name="a.wav"):
    path = folder / name
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\1\2" * 500)
    return path


def listen(folder):
    return list(open_dataset(DataSection(wav=str(folder)), SOUND).batches(2))


@pytest.mark.parametrize("share", [0.03, 0.5, 0.99])
def test_a_truncated_recording(tmp_path, share):
    path = sound(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(lambda: listen(tmp_path), path, "cannot be read.*remove or replace it")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"RIFF\4\0\0\0WAVE",
        b"ID3" + bytes(100),
        b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(28),
    ],
)
def test_a_file_that_only_claims_to_be_a_recording(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    refused(lambda: listen(tmp_path), tmp_path / "a.wav", "the recording cannot be read")


def test_every_byte_of_the_header_may_be_wrong(tmp_path):
    path = sound(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in range(44):
        broken = bytearray(whole)
        broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            listen(tmp_path)
        except DataError as error:
            assert str(tmp_path) in str(error)


def test_a_recording_whose_data_end_early(tmp_path):
    path = sound(tmp_path)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 5000)  # of 1000
    path.write_bytes(content)
    refused(lambda: listen(tmp_path), path, "cannot be read")


def test_recordings_with_nothing_or_infinity_in_them(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(0, np.int16))
    refused(lambda: listen(tmp_path), tmp_path / "a.wav", "0 samples at 8000 Hz")
    wavfile.write(tmp_path / "a.wav", 8000, np.array([0, np.inf], np.float32))
    refused(lambda: listen(tmp_path), tmp_path / "a.wav", "holds NaN or Inf")
    sound(tmp_path, "b.wav")
    data = open_dataset(DataSection(wav=str(tmp_path)), SOUND)
    rest, dropped = drop_unusable(data)
    assert rest.names == ("b.wav",) and "holds NaN or Inf" in str(dropped["a.wav"])


def test_a_size_that_a_pipe_left_open_is_read(tmp_path):
    path = sound(tmp_path)
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert listen(tmp_path)[0]["input"].shape == (1, 64)


def test_strangers_and_several_inputs(tmp_path):
    sound(tmp_path)
    two = SOUND | {"other": InputSpec("other", ("N", 64), "float32")}
    section = DataSection(wav=str(tmp_path))
    refused(lambda: open_dataset(section, two), tmp_path, r"the model has 2 \(input, other\)")
    for name in ("b.mp3", "c.mp3"):
        (tmp_path / name).write_bytes(b"x")
    refused(lambda: listen(tmp_path), tmp_path / "b.mp3", "not a recording by its name")
