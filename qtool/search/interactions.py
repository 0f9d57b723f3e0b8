"""Measure how the costs of two sites add up."""

from collections.abc import Sequence
from itertools import combinations

from qtool.quant.plan import QuantPlan
from qtool.report.search_schema import Sensitivity
from qtool.search.effects import Reference
from qtool.search.partial_network import PartialNetwork


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
        sum_alone = sum(alone[name] for name in pair)
        measured.append(
            Sensitivity(
                site=pair[0],
                kind="pair",
                kl=float(f"{effect.kl:.6g}"),
                drop=None if effect.drop is None else round(effect.drop, 4),
                sqnr_db=None if effect.sqnr_db is None else round(effect.sqnr_db, 3),
                partner=pair[1],
                interaction=float(f"{effect.kl - sum_alone:.6g}"),
            )
        )
        context.progress("pairs of sites", k + 1, len(pairs))
    return measured
