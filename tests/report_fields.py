"""Find fields of a report that say nothing: empty, null, NaN or placeholders, in JSON and HTML."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

NOTHING = re.compile(r"(?i)(?:^|\W)(?:nan|none|null|undefined|todo|tbd|\?{2,}|inf)(?:$|\W)")
# A count of nothing is a fact: no float kernel, no stray Q/DQ.
FACTS = ("none", "none lost", "none: every pair was fused")
CELLS = ("td", "th", "dd", "dt", "li", "h1", "h2", "h3", "figcaption", "summary")


def empty_fields(folder: Path) -> list[str]:
    """Return the places in a run's report.json and report.html that say nothing."""
    report = json.loads((folder / "report.json").read_text(), parse_constant=lambda text: None)
    page = _Cells()
    page.feed((folder / "report.html").read_text())
    return [*_empty_values(report, "report"), *page.empty]


def _empty_values(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            # `stray_quantize` and the counts of a kind of kernels may be empty: there are none.
            if not place.endswith(".kernels") and not key.startswith("recipe_lines"):
                yield from _empty_values(item, f"{place}.{key}")
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _empty_values(item, f"{place}[{number}]")
    elif value in (None, "") or (isinstance(value, str) and NOTHING.search(value)):
        yield f"{place}: {value!r}"


class _Cells(HTMLParser):
    """Collects cells without text, and those that hold a word for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[list[str]] = []
        self.empty: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in CELLS:
            self.open.append([tag, ""])
        elif tag in ("img", "i") and self.open:
            self.open[-1][1] += " (drawn) "

    def handle_data(self, data: str) -> None:
        for cell in self.open:
            cell[1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag not in CELLS:
            return
        name, text = self.open.pop()
        words = " ".join(text.split())
        if not words or (NOTHING.search(words) and words not in FACTS):
            self.empty.append(f"<{name}> {words!r}")
