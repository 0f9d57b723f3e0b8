"""The keys of a data section, and the messages for wrong ones."""

import subprocess
import sys
from datetime import date

import pytest
from pydantic import ValidationError

from qtool.data import Arrays, DataSection, Preprocess, Python, Take, Wav, load_preprocess
from qtool.data.class_names import check_classes
from qtool.data.preprocess import preprocess_names
from qtool.errors import DataError


def complaint(**section):
    with pytest.raises(ValidationError) as caught:
        DataSection(**section)
    return str(caught.value)


def test_defaults():
    section = DataSection(images="/d")
    assert section.reader == "images" and section.take == Take(every=1, offset=0)
    assert section.count is None and section.preprocess is None and not section.allow_overlap


def test_arrays_may_be_a_bare_path():
    assert DataSection(arrays="/f.npz").arrays == Arrays(path="/f.npz")
    assert DataSection(arrays="/f.npz").reader == "arrays"


def test_short_forms():
    assert DataSection(wav="/d").wav == Wav(path="/d")
    assert DataSection(python="mine:f").python == Python(function="mine:f")
    assert DataSection(python="mine:f").where == "mine:f" and DataSection(wav="/d").where == "/d"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "found none; expected exactly one reader"),
        ({"images": "/a", "arrays": "/b.npz"}, "found `images` and `arrays`; expected exactly one"),
        ({"arrays": "/b.npz", "preprocess": "imagenet"}, "`preprocess` belongs to `images`"),
        ({"arrays": "/b.npz", "labels": "/l.csv"}, "`arrays: {path: ..., label: y}`"),
        ({"python": "f", "labels": "/l"}, 'found "f", expected module:function'),
        ({"python": {"function": "m:f", "args": {"day": date(2026, 1, 1)}}}, "in quotes"),
        ({"python": {"function": "m:f", "args": {"table": {1: 2}}}}, "words as keys"),
        ({"python": "m:f", "labels": "/l"}, "yield the labels in the batches instead"),
        ({"wav": "/a", "preprocess": "imagenet"}, "`preprocess` belongs to `images`; `wav` does"),
        ({"wav": {"path": "/a", "log_mel": {"window": 500}}}, "expected at most n_fft, 400"),
        ({"wav": {"path": "/a", "log_mel": {"fmin": 9, "fmax": 8}}}, "expected above fmin, 9"),
        ({"wav": {"path": "/a", "log_mel": {"normalise": [0, 0]}}}, "divides by 0"),
        ({"images": "/a", "count": 0}, "greater than 0"),
        ({"images": "/a", "take": {"every": 0}}, "greater than or equal to 1"),
        ({"images": "/a", "shuffle": True}, "Extra inputs"),
        ({"images": "/a", "preprocess": "imagnet"}, 'did you mean "imagenet"'),
        ({"images": "/a", "preprocess": {"resize": 0}}, "greater than 0"),
        ({"images": "/a", "preprocess": {"std": 0}}, "expected numbers above 0"),
        ({"images": "/a", "preprocess": {"mean": [1, 2]}}, "2 values, but `color: rgb` has 3"),
        ({"images": "/a", "preprocess": {"scale": 0}}, "other than 0"),
        ({"images": "/a", "preprocess": {"dtype": "uint8", "std": 2}}, "`std` would do nothing"),
    ],
)
def test_mistakes_are_answered_with_a_remedy(section, words):
    assert words in complaint(**section)


def test_take_comes_before_count_and_count_is_spread_evenly():
    section = DataSection(images="/d", take=Take(every=2, offset=1), count=3)
    positions, notes = section.choose(12)  # 1 3 5 7 9 11
    assert positions == [1, 5, 9]
    assert notes == ("3 of 6 samples of /d, evenly spaced by sorted position",)


def test_a_count_above_the_data_takes_all_and_says_so():
    positions, notes = DataSection(images="/d", count=9).choose(4)
    assert positions == [0, 1, 2, 3] and notes == ("count 9: /d has 4 samples; all are used",)


def test_a_take_that_leaves_nothing_is_an_error():
    with pytest.raises(
        DataError, match=r"/d: `take: .*offset: 5}` leaves none of 5 samples.*lower"
    ):
        DataSection(images="/d", take=Take(offset=5)).choose(5)


@pytest.mark.parametrize("name", preprocess_names())
def test_every_named_setting_loads_and_survives_a_dump(name):
    how = load_preprocess(name)
    assert Preprocess.model_validate(how.model_dump(mode="json")) == how


def test_uint8_settings_survive_a_dump():
    how = Preprocess(dtype="uint8")
    assert Preprocess.model_validate(how.model_dump(mode="json", exclude_none=True)) == how


def test_the_names_the_docs_promise_exist():
    assert {"imagenet", "imagenet_227", "cifar10", "tf"} <= set(preprocess_names())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resise: 3", r'unknown key `resise`; did you mean "resize"\?'),
        ("- 3", "found list, expected a mapping"),
        ("resize: [1, 2", "cannot be read as preprocess settings"),
        ("std: -1", "`std` is -1"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as preprocess settings"),
    ],
)
def test_a_bad_settings_file_is_named(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        load_preprocess(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name_is_an_error_also_when_loaded():
    with pytest.raises(DataError, match='`imagnet`; did you mean "imagenet"'):
        load_preprocess("imagnet")


def test_importing_the_package_pulls_in_neither_pillow_nor_torch():
    code = (
        "import sys, qtool.data, qtool.metrics; print({'PIL', 'torch', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_alignment_of_chunks_is_refused():
    with pytest.raises(ValueError, match="`align` is for whole recordings"):
        DataSection.model_validate({"wav": {"path": "w", "hop": 4, "align": "center"}})


@pytest.mark.parametrize(
    ("names", "text"),
    [(["a", "b", "a"], '"a" twice'), (["a", ""], "an empty name"), ([], "no name")],
)
def test_class_names_that_are_no_order(names, text):
    with pytest.raises(DataError, match=text):
        check_classes(names, "classes")
