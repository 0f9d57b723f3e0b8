"""The python reader, and how functions of the user are imported and run."""

import sys

import numpy as np
import pytest

from qtool.data import DataSection, InputSpec, drop_unusable, open_dataset
from qtool.errors import DataError, RecipeError
from qtool.user_code import load_function

SPEC = {"x": InputSpec("x", ("N", 2), "float32")}
GOOD = """
import numpy as np

def batches(count=10, size=4, label=True):
    print("this goes to stderr")
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    for k in range(0, count, size):
        batch = {"x": x[k : k + size]}
        if label:
            batch["label"] = np.arange(count)[k : k + size] % 3
        yield batch
"""


def module(folder, text, name="mine"):
    sys.modules.pop(name, None)
    (folder / f"{name}.py").write_text(text)


def read(folder, function="mine:batches", args=None, trust_code=True, **section):
    python = {"function": function, "args": args or {}}
    section = DataSection(python=python, code=str(folder), **section)
    return open_dataset(section, SPEC, trust_code=trust_code)


def rows(data, size=3):
    return np.concatenate([batch["x"] for batch in data.batches(size)])[:, 0].tolist()


def test_batches_of_any_size_become_samples(tmp_path, capsys):
    module(tmp_path, GOOD)
    data = read(tmp_path)
    assert data.count == 10 and data.names[9] == "mine:batches[9]"
    assert data.labels.tolist() == [k % 3 for k in range(10)]
    assert rows(data) == [2 * k for k in range(10)]
    assert [len(batch["x"]) for batch in data.batches(3)] == [3, 3, 3, 1]
    assert [batch["label"].tolist() for batch in data.batches(8)][1] == [2, 0]
    assert "stderr" not in capsys.readouterr().out
    assert len(set(data.digests())) == 10


def test_samples_of_unknown_number_show_how_many_were_read(tmp_path):
    module(tmp_path, GOOD)
    section, seen = DataSection(python="mine:batches", code=str(tmp_path)), []
    open_dataset(section, SPEC, trust_code=True, progress=lambda *words: seen.append(words))
    stage = "read mine:batches"
    assert seen == [(stage, 4), (stage, 8), (stage, 10), (stage, 10, 10)]


def test_any_order_is_fetched(tmp_path):
    module(tmp_path, GOOD)
    data = read(tmp_path).take([7, 1, 8, 8, 0])
    assert rows(data, 2) == [14, 2, 16, 16, 0]


def test_count_and_take_choose_samples(tmp_path):
    module(tmp_path, GOOD)
    data = read(tmp_path, args={"size": 3}, take={"every": 2, "offset": 1}, count=2)
    assert rows(data) == [2, 10] and data.labels.tolist() == [1, 2]


def test_a_list_will_do_and_labels_may_be_absent(tmp_path):
    module(tmp_path, "def batches():\n    return [{'x': [[1.0, 2]]}, {'x': [[3.0, 4], [5, 6]]}]\n")
    data = read(tmp_path)
    assert data.labels is None and rows(data) == [1, 3, 5]


def test_code_needs_consent(tmp_path):
    module(tmp_path, "raise SystemExit('must not run')")
    with pytest.raises(RecipeError, match=r"python: mine:batches is code.*add --trust-code"):
        read(tmp_path, trust_code=False)


def test_the_recipe_s_folder_comes_first_and_a_namesake_elsewhere_is_forgotten(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def f():\n    return {name!r}\n")
    sys.modules.pop("mine", None)
    for name in ("a", "b", "a"):
        function = load_function("mine:f", str(tmp_path / name), trusted=True, key="python")
        assert function() == name


def test_a_module_on_the_path_is_imported_too():
    assert load_function("os.path:join", None, trusted=True, key="k")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("text", "function", "words"),
    [
        ("x = 1", "mine:batches", r"mine \(.*mine.py\) has no `batches`"),
        ("def batch(): 1", "mine:batches", 'did you mean "batch"'),
        ("batches = 3", "mine:batches", "is a int; expected a function"),
        ("import nowhere_at_all", "mine:batches", r"mine.py:1 raised ModuleNotFoundError: No mod"),
        ("def batches(:", "mine:batches", r"mine.py:1 raised SyntaxError"),
        ("1 / 0", "mine:batches", r"importing mine: .*mine.py:1 raised ZeroDivisionError"),
        ("raise SystemExit(3)", "mine:batches", "raised SystemExit: 3"),
        ("", "their:batches", "no module their; expected it in .* or on sys.path"),
        ("", "json:batches", "json.* has no `batches`"),
    ],
)
def test_a_function_that_is_not_there(tmp_path, text, function, words):
    module(tmp_path, text)
    with pytest.raises(DataError, match=words):
        read(tmp_path, function)


def test_a_file_called_like_a_module_in_use_is_not_mixed_up(tmp_path):
    (tmp_path / "json.py").write_text("def batches(): 1")
    with pytest.raises(DataError, match=r"has the name of a module that is already in use.*rename"):
        read(tmp_path, "json:batches")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("np.zeros(2).reshape(3); yield 1", r"mine.py:3 raised ValueError: cannot reshape"),
        ("raise ValueError('no disk')", r"mine.py:3 raised ValueError: no disk; expected"),
        ("yield {'x': np.ones((2, 2))}; 1 / 0", "raised ZeroDivisionError"),
        ("yield {'x': np.ones((2, 3), 'f4')}", r"`x` has shape \[2, 3\]; expected .*\[N, 2\]"),
        ("yield {'x': np.ones(2, 'f4')}", r"`x` has shape \[2\]"),
        ("yield {'y': np.ones((2, 2))}", r"has `y`; expected x, label: leave it out"),
        ("yield {'label': [1]}", "has nothing for the model's input `x`"),
        ("yield {'x': np.ones((2, 2)), 'label': [1]}", "x 2, label 1 samples; expected the same"),
        ("yield {'x': np.ones((0, 2))}", "x 0 samples; expected the same number.*at least one"),
        ("yield np.ones((2, 2))", "batch 0 is a ndarray; expected a dict"),
        ("return {'x': np.ones((2, 2))}", "gave a dict; expected batches"),
        ("return 3", "gave a int; expected batches"),
        ("return []", "yielded no batch"),
        ("yield {'x': [[1, 2], [3]]}", "`x`: .*raised ValueError"),
        ("yield {'x': [['a', 'b']]}", "found <U1, but the model's input `x` is float32"),
        ("yield {'x': [[None, 1]]}", "an array object.*expected numbers"),
        ("yield {'x': [[0, 1], [np.nan, 1]]}", "sample 1 holds NaN or Inf"),
        ("yield {'x': np.ones((1, 2)), 'label': [1]}; yield {'x': np.ones((1, 2))}", "or none"),
        ("import random; yield {'x': np.full((1, 2), random.random())}", "fix the random seed"),
    ],
)
def test_what_a_function_yields_wrong(tmp_path, body, words):
    module(tmp_path, f"import numpy as np\ndef batches():\n    {body}\n")
    with pytest.raises(DataError, match=words):
        list(read(tmp_path).batches(2))


def test_a_sample_that_holds_nan_can_be_left_out(tmp_path):
    text = "import numpy as np\ndef batches():\n    yield {'x': [[0.0, 1], [np.nan, 1], [2, 3]]}\n"
    module(tmp_path, text)
    rest, dropped = drop_unusable(read(tmp_path))
    assert rows(rest) == [0, 2] and list(dropped) == ["mine:batches[1]"]


def test_fewer_samples_in_the_second_pass_are_noticed(tmp_path):
    text = "calls = []\ndef batches():\n    calls.append(1)\n    yield {'x': [[1.0, 2]]}\n"
    module(tmp_path, text + "    if len(calls) == 1:\n        yield {'x': [[3.0, 4]]}\n")
    with pytest.raises(DataError, match="yielded 1 samples, 2 in the first pass"):
        list(read(tmp_path).batches(2))


def test_arguments_the_function_does_not_have(tmp_path):
    module(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"mine:batches: raised TypeError: .*sise"):
        read(tmp_path, args={"sise": 3})


def test_samples_of_several_lengths_are_refused_for_an_open_size(tmp_path):
    text = "import numpy as np\ndef batches():\n    for size in (3, 3, 5):\n"
    module(tmp_path, text + "        yield {'x': np.ones((2, size), 'f4')}\n")
    specs = {"x": InputSpec("x", ("N", "T"), "float32")}
    python = {"function": "mine:batches"}
    section = DataSection(python=python, code=str(tmp_path))
    words = r"leaves T open.*: 3 \(sample 0\), 5 \(sample 4\); .*`model: .*{x: \[N, 5\]}}`"
    with pytest.raises(DataError, match=words):
        open_dataset(section, specs, trust_code=True)
    section = DataSection(python=python, code=str(tmp_path), count=1)
    assert open_dataset(section, specs, trust_code=True).count == 1
