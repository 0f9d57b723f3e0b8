"""The recipe reference is that of this version, and the links of the documents lead somewhere."""

import re
from pathlib import Path

import pytest

from qtool.recipe.json_schema import recipe_schema
from qtool.recipe.reference import recipe_reference
from qtool.recipe.registry import KINDS

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_reference_is_up_to_date():
    written = (ROOT / "docs" / "reference.md").read_text()
    assert written == recipe_reference(), "run `qtool schema --markdown > docs/reference.md`"


def test_every_key_and_name_stands_in_it():
    text, schema = recipe_reference(), recipe_schema()
    for part in (schema, *schema["$defs"].values()):
        for key in part["properties"]:
            assert f"| `{key}` |" in text
    for kind in KINDS.values():
        assert all(f"| `{name}` |" in text for name in kind.table())
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links <= {title.lower() for title in re.findall(r"^#+ (.*)$", text, re.M)}


def anchor(title):
    """Return a heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {anchor(title) for title in titles}, f"{page.name}: {target}"
