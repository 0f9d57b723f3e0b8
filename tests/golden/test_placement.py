"""Which values of the small models live on which grids; ``placement.yaml`` holds what was agreed.

After a change on purpose, ``PYTHONPATH=tests python tests/golden/test_placement.py`` writes it.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from models import BUILDERS, cpu, rewritten

from qtool.annotate import annotate
from qtool.bits import Bits

GOLDEN = Path(__file__).with_name("placement.yaml")


def placement(name: str) -> dict[str, Any]:
    model = BUILDERS[name]().model()
    rewritten(model)
    plan = annotate(model, cpu(), Bits())
    sites = {
        site.name: " ".join(
            [
                *filter(None, (*site.inputs, site.weight, site.bias)),
                *(f"| {name}" for name in site.nodes[1:]),
                "->" if site.output in plan.grid_of else "-> float",
                site.output,
            ]
        )
        for site in plan.sites.values()
    }
    grids = {
        grid: f"{_words(plan.grids[grid])}: {' '.join(values)}"
        for grid, values in plan.members().items()
    }
    return {
        "sites": sites,
        "passes": sorted(plan.passes),
        "floats": dict(plan.floats),
        "grids": grids,
    }


def _words(spec: Any) -> str:
    kind = "int" if spec.signed else "uint"
    return f"{kind}{spec.bits} per {spec.granularity.name}"


@pytest.mark.parametrize("name", BUILDERS)
def test_placement(name):
    agreed = yaml.safe_load(GOLDEN.read_text())
    assert placement(name) == agreed[name]


def test_nothing_else_is_agreed():
    assert list(yaml.safe_load(GOLDEN.read_text())) == list(BUILDERS)


if __name__ == "__main__":
    found = {name: placement(name) for name in BUILDERS}
    GOLDEN.write_text(yaml.safe_dump(found, sort_keys=False, width=100))
