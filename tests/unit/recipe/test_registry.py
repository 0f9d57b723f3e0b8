"""The kinds of names: every place is checked, documented, and reached by errors with a key."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from qtool.errors import DataError, RecipeError
from qtool.recipe.loader import load_recipe, recipe_from_keywords
from qtool.recipe.registry import ITEM, KINDS, NAME, describe
from qtool.recipe.yaml_loader import emit

PLACES = [(kind.name, place) for kind in KINDS.values() for place in kind.at]
DOCUMENT = Path(__file__).parents[3] / "docs" / "recipe.md"


def small() -> dict:
    return {
        "model": "net.onnx",
        "calibrate": {"images": "train"},
        "evaluate": {"images": "train"},
        "qat": {"images": "train"},
        "bits": {"budget": {"bits": 4}},
    }


def with_name(place: tuple[str, ...], name: object) -> dict:
    """Return a recipe that has ``name`` at a place of a kind."""
    data = section = small()
    *keys, last = [name if key == NAME else key for key in place if key != ITEM]
    for key in keys:
        section = section.setdefault(key, {})
    section[last] = [name] if place[-1] == ITEM else name
    return data


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_an_unknown_name_is_refused_wherever_its_kind_stands(kind, place, tmp_path):
    with pytest.raises(RecipeError) as caught:
        recipe_from_keywords(with_name(place, "zzz"), "here", tmp_path, files=False)
    assert "zzz" in str(caught.value)
    assert ".".join(key for key in place if key not in (ITEM, NAME)) in str(caught.value)


# Keys are checked by their section, preprocess settings by their model.
IN_TABLE = [(kind, place) for kind, place in PLACES if kind not in ("readers", "preprocess")]


@pytest.mark.parametrize(("kind", "place"), IN_TABLE)
def test_a_name_is_checked_against_the_table_of_its_kind(kind, place, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], table=lambda: {"other": print}))
    with pytest.raises(RecipeError, match="other"):
        recipe_from_keywords(with_name(place, "zzz"), "here", tmp_path, files=False)


def shown(place: tuple[str, ...]) -> str:
    return "`" + ".".join(place).replace(f".{ITEM}", ITEM) + "`"


def test_the_document_has_the_table_of_kinds():
    rows = [
        f"| `{kind.name}` | {', '.join(shown(place) for place in kind.at)} |"
        for kind in KINDS.values()
    ]
    assert "\n".join(["| kind | keys |", "|---|---|", *rows]) in DOCUMENT.read_text()


def test_summaries_are_one_line():
    for kind in KINDS.values():
        for name in kind.table():
            entry = describe(kind, name)
            assert entry.summary and "\n" not in entry.summary
            assert entry.text.startswith(entry.summary)


def loaded(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    (tmp_path / "r.yaml").write_text(emit({**small(), "bits": {"scale": "float"}}))
    return load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("key", [("bits", "scale"), ("calibrate",), ("gates", "max_drop"), ()])
def test_an_error_with_a_key_gets_its_line_once(key, tmp_path):
    recipe = loaded(tmp_path)
    with pytest.raises(RecipeError) as caught, recipe.locate_errors(), recipe.locate_errors():
        raise RecipeError("found x, expected y; write y", key=key)
    assert str(caught.value) == str(recipe.error(key, "found x, expected y; write y"))
    assert "r.yaml:" in str(caught.value)


@pytest.mark.parametrize("error", [RecipeError("--out: is a file"), DataError("no samples")])
def test_an_error_without_a_key_passes_unchanged(error, tmp_path):
    with pytest.raises(type(error)) as caught, loaded(tmp_path).locate_errors():
        raise error
    assert caught.value is error


def test_an_error_names_its_key_where_no_recipe_adds_the_line():
    error = RecipeError("found x", key=("bits", "layers", "name:a.b", 2))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == 'bits.layers."name:a.b"[2]: found x'
    assert again.text == "found x" and again.key == error.key
