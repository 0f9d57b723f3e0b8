"""Measure how the costs of two sites add up."""

from collections.abc import Sequence
from itertools import combinations

from qtool.quant.plan import QuantPlan
from qtool.report.search_schema import Sensitivity
from qtool.search.effects import Reference
from qtool.search.partial_network import PartialNetwork
from qtool.search.sensitivity import row_of


def interactions(
    plan: QuantPlan, reference: Reference, rows: Sequence[Sensitivity], worst: int
) -> list[Sensitivity]:
    """Measure the worst sites two by two.

        interaction(i, j) = KL(i and j quantized) - KL(i) - KL(j)

    Source: Deng et al. 2023, CLADO, sec. 3.2, arXiv:2307.05657.
    Departure: only between the few worst sites; all pairs cost a network each.

    Args:
        plan: every grid is calibrated.
        reference: samples and outputs of the float network.
        rows: costs of single sites; those of kind ``both`` are read.
        worst: how many sites.
    """
    context = reference.context
    network = PartialNetwork(context, plan)
    alone = {row.site: row.kl for row in rows if row.kind == "both"}
    order = {unit.name: k for k, unit in enumerate(network.units)}
    names = [name for name in alone if name in order]
    names = sorted(sorted(names, key=lambda name: -alone[name])[:worst], key=order.__getitem__)
    pairs = list(combinations(names, 2))
    measured = []
    for k, pair in enumerate(pairs):
        outputs = network.run(
            context,
            reference.dataset,
            lambda unit, pair=pair: "both" if unit.name in pair else None,  # type: ignore[misc]
        )
        effect = reference.effect(outputs)
        extra = effect.kl - sum(alone[name] for name in pair)
        measured.append(row_of(pair[0], "pair", effect, partner=pair[1], interaction=extra))
        context.progress("pairs of sites", k + 1, len(pairs))
    return measured
