"""Measure how the costs of two sites add up."""

from collections.abc import Sequence
from itertools import combinations

from qtool.report.search_schema import Sensitivity
from qtool.search.sensitivity import Scan


def interactions(scan: Scan, rows: Sequence[Sensitivity], worst: int) -> list[Sensitivity]:
    """Measure the worst sites two by two.

        interaction(i, j) = KL(i and j quantized) - KL(i) - KL(j)

    Source: Deng et al. 2023, CLADO, sec. 3.2, arXiv:2307.05657.
    Departure: only between the few worst sites; all pairs cost a network each.

    Args:
        scan: of the sites; pairs that it has in its cache are not measured again.
        rows: costs of single sites; those of kind ``both`` are read.
        worst: how many sites.
    """
    alone = {row.site: row.kl for row in rows if row.kind == "both"}
    units = {unit.name: unit for unit in scan.network.units}
    order = {name: k for k, name in enumerate(units)}
    names = [name for name in alone if name in order]
    names = sorted(sorted(names, key=lambda name: -alone[name])[:worst], key=order.__getitem__)
    pairs = list(combinations(names, 2))
    measured = []
    for k, pair in enumerate(pairs):
        row = scan.together(pair[0], "both", [units[name] for name in pair])
        extra = row.kl - sum(alone[name] for name in pair)
        more = {"kind": "pair", "partner": pair[1], "interaction": extra}
        measured.append(row.model_copy(update=more))
        scan.context.progress("pairs of sites", k + 1, len(pairs))
    return measured
