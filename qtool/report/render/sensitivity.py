"""The costs of sites as charts and as rows of tables."""

from collections.abc import Mapping
from dataclasses import dataclass

import qtool.report.render.formatting as formatting
from qtool.report.render.charts import Column, Strip, axis, share, ticks
from qtool.report.report import Report, Sensitivity
from qtool.report.verdict import unit_word

WORST_SITES = 8
MARKED = 3
DROP = "points lost"
DIVERGENCE = "divergence from the float output"


@dataclass(frozen=True)
class SiteCost:
    """One of the worst sites.

    Attributes:
        name: of the site.
        cost: of the site alone: the drop where it was measured, and the divergence.
        part: the part that costs more: weights or activations.
    """

    name: str
    cost: str
    part: str


def by_kind(report: Report, kind: str) -> dict[str, Sensitivity]:
    """Return the rows of one kind by site, in graph order; without `all` and op types."""
    rows = report.sensitivity or ()
    return {row.site: row for row in rows if row.kind == kind and not _is_group(row.site)}


def groups(report: Report) -> list[Sensitivity]:
    """Return the rows of the whole network and of op types."""
    return [row for row in report.sensitivity or () if _is_group(row.site)]


def pairs(report: Report) -> list[Sensitivity]:
    """Return the rows of pairs of sites."""
    return [row for row in report.sensitivity or () if row.kind == "pair"]


def worst_sites(report: Report, count: int = WORST_SITES) -> list[SiteCost]:
    """Return the sites that cost most alone, largest divergence first."""
    both = by_kind(report, "both")
    parts = {kind: by_kind(report, kind) for kind in ("weights", "activations")}
    rows = sorted(both.values(), key=lambda row: -row.kl)[:count]
    return [SiteCost(row.site, cost(report, row), _larger(row.site, parts)) for row in rows]


def cost(report: Report, row: Sensitivity) -> str:
    """Format the drop, where there is one, and the divergence."""
    shown = f"kl {row.kl:.3g}"
    if row.drop is None:
        return shown
    return f"{row.drop:.2f} {unit_word(report.accuracy)}, {shown}".replace("-0.00", "0.00")


def cost_strips(report: Report) -> list[Strip]:
    """Place the sites: the cost of each alone, of its parts, and the SQNR with all before it."""
    both = by_kind(report, "both")
    return (
        [_cost_strip(report, both), *_cumulative_strip(report, both), *_part_strips(report)]
        if both
        else []
    )


def _cost_strip(report: Report, both: Mapping[str, Sensitivity]) -> Strip:
    drops = {name: max(row.drop or 0.0, 0.0) for name, row in both.items()}
    by_drop = any(drops.values())
    costs = drops if by_drop else {name: row.kl for name, row in both.items()}
    top = ticks(max(costs.values()), count=5)
    marked = sorted(costs, key=lambda name: -costs[name])[:MARKED]
    columns = [
        Column(
            share(costs[name], top[-1]),
            f"{formatting.clean(name)}: {cost(report, row)}",
            "poor" if name in marked else "plain",
            marked.index(name) + 1 if name in marked else 0,
        )
        for name, row in both.items()
    ]
    title = f"Each site alone: {DROP if by_drop else DIVERGENCE}"
    return Strip(title, columns, axis(top), tall=True)


def _cumulative_strip(report: Report, both: Mapping[str, Sensitivity]) -> list[Strip]:
    rows = by_kind(report, "cumulative")
    noise = {name: rows[name].sqnr_db or 0.0 for name in both if name in rows}
    if not noise:
        return []
    top = ticks(max(noise.values()), count=3)
    columns = [
        Column(
            share(noise.get(name, 0.0), top[-1]),
            f"{formatting.clean(name)}: {noise[name]:.1f} dB with all before it"
            if name in noise
            else formatting.clean(name),
        )
        for name in both
    ]
    return [
        Strip("Signal to noise at the output in dB, with all sites up to here", columns, axis(top))
    ]


def _part_strips(report: Report) -> list[Strip]:
    """Place weights alone and activations alone, on one scale."""
    kinds = {kind: by_kind(report, kind) for kind in ("weights", "activations")}
    names = list(kinds["weights"])
    if not names:
        return []
    top = ticks(max(row.kl for rows in kinds.values() for row in rows.values()), count=3)
    return [
        Strip(
            title=f"{kind.capitalize()} alone: {DIVERGENCE}",
            columns=[
                Column(
                    share(rows[name].kl, top[-1]) if name in rows else 0.0,
                    f"{formatting.clean(name)}: {rows[name].kl:.3g}"
                    if name in rows
                    else formatting.clean(name),
                )
                for name in names
            ],
            ticks=axis(top),
        )
        for kind, rows in kinds.items()
    ]


def _is_group(site: str) -> bool:
    return site == "all" or site.startswith("op:")


def _larger(site: str, parts: Mapping[str, Mapping[str, Sensitivity]]) -> str:
    costs = {kind: rows[site].kl for kind, rows in parts.items() if site in rows}
    return max(costs, key=lambda kind: costs[kind]) if len(costs) == 2 else ""
