"""The costs of sites as charts and as rows of tables."""

from collections.abc import Mapping
from dataclasses import dataclass

import qtool.report.render.formatting as formatting
from qtool.report.render.charts import Tick, TwoBars, TwoCharts, share, ticks
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


def cost_chart(report: Report) -> TwoCharts | None:
    """Place the sites: what each costs alone above, SQNR with all before it below."""
    both, cumulative = by_kind(report, "both"), by_kind(report, "cumulative")
    if not both:
        return None
    drops = {name: max(row.drop or 0.0, 0.0) for name, row in both.items()}
    by_drop = any(drops.values())
    costs = drops if by_drop else {name: row.kl for name, row in both.items()}
    upper = ticks(max(costs.values()), count=5)
    noise = {name: row.sqnr_db or 0.0 for name, row in cumulative.items()}
    lower = ticks(max(noise.values(), default=0.0), count=3)
    marked = sorted(costs, key=lambda name: -costs[name])[:MARKED]
    bars = [
        TwoBars(
            above=share(costs[name], upper[-1]),
            below=share(noise.get(name, 0.0), lower[-1]),
            tone="poor" if name in marked else "plain",
            tip=f"{formatting.clean(name)}: {cost(report, row)}"
            + (f", {noise[name]:.1f} dB with all before it" if name in noise else ""),
            rank=marked.index(name) + 1 if name in marked else 0,
        )
        for name, row in both.items()
    ]
    return _charts(f"Each site alone: {DROP if by_drop else DIVERGENCE}", bars, upper, lower)


def part_chart(report: Report) -> TwoCharts | None:
    """Place the sites: weights alone above, activations alone below, on one scale."""
    weights, activations = (by_kind(report, kind) for kind in ("weights", "activations"))
    if not weights:
        return None
    rows = (*weights.values(), *activations.values())
    axis = ticks(max(row.kl for row in rows), count=3)
    bars = [
        TwoBars(
            above=share(row.kl, axis[-1]),
            below=share(activations[name].kl, axis[-1]) if name in activations else 0.0,
            tone="plain",
            tip=f"{formatting.clean(name)}: weights {row.kl:.3g}"
            + (f", activations {activations[name].kl:.3g}" if name in activations else ""),
        )
        for name, row in weights.items()
    ]
    return _charts(f"Weights alone: {DIVERGENCE}", bars, axis, axis)


def _charts(title: str, bars: list[TwoBars], upper: list[float], lower: list[float]) -> TwoCharts:
    return TwoCharts(
        title=title,
        bars=bars,
        above_ticks=[Tick(share(value, upper[-1]), f"{value:g}") for value in upper],
        below_ticks=[Tick(share(value, lower[-1]), f"{value:g}") for value in lower],
    )


def _is_group(site: str) -> bool:
    return site == "all" or site.startswith("op:")


def _larger(site: str, parts: Mapping[str, Mapping[str, Sensitivity]]) -> str:
    costs = {kind: rows[site].kl for kind, rows in parts.items() if site in rows}
    return max(costs, key=lambda kind: costs[kind]) if len(costs) == 2 else ""
