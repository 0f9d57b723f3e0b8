"""Recipes from strangers: nothing runs, nothing hangs, every refusal names its line."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import RecipeError
from qtool.recipe.loader import load_recipe
from qtool.recipe.yaml_loader import MAX_CHARACTERS, emit, parse

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [" + ", ".join([f"*{chr(97 + i)}"] * 9) + "]" for i in range(20)
)
MERGE_BOMB = "a: &a {}\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [" + ", ".join([f"*{chr(97 + i)}"] * 9) + "]}"
    for i in range(20)
)
EXPANDS = "aliases or nesting expand beyond 10000 values or 40 levels; write the values out"
REFUSED = [
    ("a: 1\nb: 2\na: 3\n", "r.yaml:3: a: duplicate key, first on line 1; keep one"),
    ("a:\n  b: 1\n  b: 2\n", "r.yaml:3: a.b: duplicate key, first on line 2; keep one"),
    ("a: 1\n\tb: 2\n", "r.yaml:2: found a tab in the indentation; use spaces"),
    ("a:\n\tb: 2\n", "r.yaml:2: found a tab in the indentation; use spaces"),
    ("a: [1, 2\nb: 3\n", "r.yaml:2: not valid YAML: while parsing a flow sequence: expected"),
    ("a: 'x\n", "r.yaml:2: not valid YAML: while scanning a quoted scalar: found unexpected end"),
    ("a: !!python/object/apply:os.system [id]\n",
     'r.yaml:1: a: found the tag "tag:yaml.org,2002:python/object/apply:os.system", which recipes '
     "do not allow; remove it"),
    ("a: !!python/name:os.system\n", 'r.yaml:1: a: found the tag "tag:yaml.org,2002:python/name:'),
    ("!!python/object:x.Y {}\n", 'r.yaml:1: found the tag "tag:yaml.org,2002:python/object:x.Y"'),
    ("a: !include other.yaml\n", 'r.yaml:1: a: found the tag "!include", which recipes do not'),
    ("a: !!binary aGk=\n", 'r.yaml:1: a: found the tag "tag:yaml.org,2002:binary"'),
    ("a: !!set {b}\n", 'r.yaml:1: a: found the tag "tag:yaml.org,2002:set"'),
    ("a: !!int x\n", 'r.yaml:1: a: found "x" (invalid literal'),
    ("a: !!bool x\n", 'r.yaml:1: a: found "x" (expected true or false)'),
    ("1: a\n", 'r.yaml:1: found "1" as a key, expected a word'),
    ("true: a\n", 'r.yaml:1: found "true" as a key, expected a word'),
    ("? [a]\n: b\n", "r.yaml:1: found a list or mapping as a key, expected a word"),
    ("a: 1\n---\nb: 2\n", 'r.yaml:2: found a second document ("---"), expected one; keep one rec'),
    ("a: *b\n", "r.yaml:1: not valid YAML: found undefined alias 'b'"),
    ("a: &a [*a]\n", "r.yaml:1: a[0]: an alias refers to itself; write the values out"),
    ("a: &a {b: *a}\n", "r.yaml:1: a.b: an alias refers to itself; write the values out"),
    ("a: &a {<<: *a}\n", "r.yaml:1: a: an alias refers to itself; write the values out"),
    ("a: {<<: 3}\n", "r.yaml:1: a.<<: found no mapping to merge; expected an alias to one"),
    ("a: {<<: [3]}\n", "r.yaml:1: a.<<: found no mapping to merge; expected an alias to one"),
    ("a: x\x00y\n", "r.yaml:1: found the control character #x0000; remove it"),
    ("a: 1\nb: \x07\n", "r.yaml:2: found the control character #x0007; remove it"),
    ("[" * 5000, "r.yaml: not readable as YAML (maximum recursion depth exceeded"),
    ("a: " + "{a: " * 100 + "1" + "}" * 100, "r.yaml:1: a.a.a: aliases or nesting expand beyond"),
    ("a: " + "9" * 5000, 'r.yaml:1: a: found "9999'),
    (BOMB, EXPANDS),
    (MERGE_BOMB, EXPANDS),
    ("a: " + "x" * MAX_CHARACTERS, "r.yaml: found 262147 characters, expected a recipe (<="),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_hostile_yaml_is_refused_with_its_place(text, expected):
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    assert str(caught.value).startswith("r.yaml:")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.monotonic() - start < 20  # a bomb would take hours; a busy machine a second


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(RecipeError, match="byte 7 is not UTF-8; save it as UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize("value", ["${HOME}", "$(id)", "`id`", "%(x)s", "{{ 7 * 7 }}"])
def test_nothing_is_substituted(value):
    assert parse(emit({"a": value}), "r.yaml").data == {"a": value}


def test_a_long_wrong_value_is_shortened(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ncalibrate: {images: x}\nbits: {weights: " + "y" * 9999 + "}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert "..." in str(caught.value)
    assert len(str(caught.value)) < 400


def test_format_braces_in_values_stay_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text('model: m\ncalibrate: {images: x}\nbits: {weights: "{0} {x} %s"}\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert 'found "{0} {x} %s"' in str(caught.value)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@given(DATA)
def test_what_is_written_is_read_back(data):
    assert parse(emit({"key": data}), "r.yaml").data == {"key": data}


@given(st.text(max_size=200))
def test_any_text_gives_data_or_an_error_of_ours(text):
    try:
        parse(text, "r.yaml")
    except RecipeError as error:
        assert str(error).startswith("r.yaml:")


YAML_BITS = st.sampled_from([*"{}[]:,-?&*!|>'\"%#@` \n\t<ab1.~", "<<: *a", "&a ", "- ", ": "])


@given(st.lists(YAML_BITS, max_size=40).map("".join))
def test_any_punctuation_gives_data_or_an_error_of_ours(text):
    test_any_text_gives_data_or_an_error_of_ours.hypothesis.inner_test(text)


def test_the_home_of_nobody_is_a_name(tmp_path):
    (tmp_path / "r.yaml").write_text('model: "~no body/m.onnx"\ncalibrate: {images: x}\n')
    with pytest.raises(RecipeError, match=r"r.yaml:1: model: nothing at .*~no body/m.onnx"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("name", ["x" * 400, "x" * 5000, "a\\0b"])
def test_a_path_that_no_system_has(name, tmp_path):
    (tmp_path / "r.yaml").write_text(f'model: "{name}.onnx"\ncalibrate: {{images: train}}\n')
    with pytest.raises(RecipeError, match=r"r.yaml:\d"):
        load_recipe(tmp_path / "r.yaml")


def test_a_mapping_where_no_form_of_a_key_takes_one(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {onnx: {}}\ncalibrate: {images: x}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:1: model.onnx: found {}, expected a path"):
        load_recipe(tmp_path / "r.yaml")
