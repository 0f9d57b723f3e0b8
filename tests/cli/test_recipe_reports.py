"""Each recipe that is shipped gives a report without an empty field, in JSON and in HTML."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fields import empty_fields

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
TRAINING = [path for path in RECIPES if "\nqat:" in path.read_text()]
RUNS = [*(("ptq", path) for path in RECIPES), *(("qat", path) for path in TRAINING)]
# A table may say "none" where there are none; Python's None is a leak.
PLACEHOLDER = re.compile(r"\b(NaN|nan|null|undefined|TODO|TBD|None)\b|\{\{|\{%|Lorem")
VOID = {"meta", "br", "wbr", "img", "input", "hr", "link"}
# Lists that say "there are none", and the verdict of a run that is not judged.
MAY_BE_EMPTY = {"stray_quantize", "notes", "float", "gates"}
MAY_BE_NULL = {"passed"}


def is_empty(value, name):
    """Return whether nothing stands under a key."""
    if value is None:
        return name not in MAY_BE_NULL
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return not value or PLACEHOLDER.fullmatch(value.strip()) is not None
    return value in ([], {}) and name not in MAY_BE_EMPTY


def empty_values(value, key="report"):
    """Yield the keys under which nothing stands."""
    if is_empty(value, key.rpartition(".")[2]):
        yield key
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from empty_values(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from empty_values(inner, key)


class Cells(HTMLParser):
    """Collects the text of every element that must say something."""

    SAY = frozenset({"td", "th", "dd", "dt", "h1", "h2", "h3", "li", "summary", "code", "p"})

    def __init__(self, page):
        super().__init__()
        self.open, self.empty, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if self.open:
            self.open[-1][2] = True  # an element inside says something in its own way
        if tag not in VOID:
            self.open.append([tag, dict(attributes), False])

    def handle_startendtag(self, tag, attributes):
        if self.open:
            self.open[-1][2] = True

    def handle_endtag(self, tag):
        opened, attributes, says = self.open.pop()
        assert opened == tag
        if tag in self.SAY and not says:
            self.empty.append((tag, attributes))

    def handle_data(self, data):
        if self.open and data.strip():
            self.open[-1][2] = True
            if self.open[-1][0] not in ("style", "script"):
                self.texts.append(data.strip())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"passed": None, "notes": [], "a": [{"b": 1}]}, []),
        ({"a": {"b": None}}, ["report.a.b"]),
        ({"a": [1.0, float("nan")]}, ["report.a"]),
        ({"a": "", "b": {}, "c": "TODO", "d": "None"}, [f"report.{k}" for k in "abcd"]),
    ],
)
def test_the_walk_sees_what_is_empty(value, expected):
    assert list(empty_values(value)) == expected


def test_the_walk_of_a_page_sees_what_is_empty():
    page = Cells("<table><tr><td>1</td><td class='x'></td><td><b>2</b></td></tr></table><p>nan</p>")
    assert page.empty == [("td", {"class": "x"})]
    assert [text for text in page.texts if PLACEHOLDER.search(text)] == ["nan"]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "recipe"), RUNS, ids=lambda part: getattr(part, "stem", part))
def test_the_report_of_a_recipe_has_no_empty_field(command, recipe, digits, tmp_path):
    words = [command, recipe, "--out", tmp_path / "run", "--quiet"]
    words += ["--set", "evaluate.thumbnails=4", *(["--epochs", "2"] if command == "qat" else [])]
    done = subprocess.run([sys.executable, "-m", "qtool", *map(str, words)], capture_output=True)
    assert done.returncode in (0, 1), done.stderr
    assert empty_fields(tmp_path / "run") == []
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert list(empty_values(report)) == []
    page = Cells((tmp_path / "run/report.html").read_text())
    # The cell in the corner of a table, and what a float network has none of, stay empty.
    blank = [(tag, attributes) for tag, attributes in page.empty if tag not in ("th", "td")]
    assert blank == []
    assert [text for text in page.texts if PLACEHOLDER.search(text)] == []
    assert not PLACEHOLDER.search((tmp_path / "run/report.md").read_text())
