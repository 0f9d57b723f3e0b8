"""Which values of the small models live on which grids; ``placement.yaml`` holds what was agreed.

``placement_targets.yaml`` has two of them for every other target.

After a change on purpose, ``PYTHONPATH=tests python tests/golden/test_placement.py`` writes it.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from models import BUILDERS, cpu, rewritten

from qtool.annotation.annotator import annotate
from qtool.quant.bit_widths import Bits
from qtool.targets.loader import load_target, target_names
from qtool.targets.target import Target

GOLDEN = Path(__file__).with_name("placement.yaml")
OF_TARGETS = Path(__file__).with_name("placement_targets.yaml")
TARGETS = [name for name in target_names() if name != "onnxruntime-cpu"]
SHOWN = ("residual", "squeeze_excite")


def placement(name: str, target: Target) -> dict[str, Any]:
    model = BUILDERS[name]().model()
    rewritten(model, *target.rewrites)
    weights, activations = target.weights, target.activations
    bits = Bits(weights.bits, activations.bits, granularity=weights.granularity.name)
    plan = annotate(model, target, bits)
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
        "passes": sorted(plan.data_movement_ops),
        "floats": dict(plan.float_nodes),
        "grids": grids,
    }


def _words(spec: Any) -> str:
    kind = "int" if spec.signed else "uint"
    zero = "" if spec.symmetric else " with zero point"
    return f"{kind}{spec.bits} per {spec.granularity.name}{zero}"


def placements(target: str) -> dict[str, Any]:
    return {name: placement(name, load_target(target)) for name in SHOWN}


@pytest.mark.parametrize("name", BUILDERS)
def test_placement(name):
    agreed = yaml.safe_load(GOLDEN.read_text())
    assert placement(name, cpu()) == agreed[name]


@pytest.mark.parametrize("target", TARGETS)
def test_placement_of_other_targets(target):
    assert placements(target) == yaml.safe_load(OF_TARGETS.read_text())[target]


def test_nothing_else_is_agreed():
    assert list(yaml.safe_load(GOLDEN.read_text())) == list(BUILDERS)
    assert list(yaml.safe_load(OF_TARGETS.read_text())) == TARGETS


if __name__ == "__main__":
    found = {name: placement(name, cpu()) for name in BUILDERS}
    GOLDEN.write_text(yaml.safe_dump(found, sort_keys=False, width=100))
    others = {target: placements(target) for target in TARGETS}
    OF_TARGETS.write_text(yaml.safe_dump(others, sort_keys=False, width=100))
