"""Show the recipes that a search tried, as a chart and as rows of tables."""

import math

import qtool.report.render.formatting as formatting
from qtool.report.render.charts import Dot, Scatter, Tick, axis, share, ticks
from qtool.report.report import Report, SearchPoint
from qtool.report.search_schema import Rung

SMALLEST = 1e-12
"""Divergences below are drawn here: their logarithm would stretch the axis."""
SMALLEST_MS = 0.005
"""Shorter differences would be shown as 0.00 ms."""


def front_chart(report: Report) -> Scatter | None:
    """Place the front: bytes to the right, divergence upwards on a logarithmic scale.

    The chosen point is marked. None for fewer than two points.
    """
    search = report.search
    if search is None or len(search.front) < 2:
        return None
    x_axis = ticks(max(point.bytes for point in search.front), count=4)
    heights = [math.log10(max(point.kl, SMALLEST)) for point in search.front]
    bottom, top = math.floor(min(heights)), math.ceil(max(heights))
    span = (top - bottom) or 1
    dots = [
        Dot(
            x=share(point.bytes, x_axis[-1]),
            y=share(height - bottom, span),
            number=number,
            baseline=point == search.chosen,
            tip=f"{formatting.clean(point.name)}: {describe(report, point)}",
        )
        for number, (point, height) in enumerate(zip(search.front, heights, strict=True), 1)
    ]
    return Scatter(
        dots=dots,
        x_ticks=axis(x_axis, formatting.size),
        y_ticks=[
            Tick(share(power - bottom, span), f"1e{power}")
            for power in range(bottom, bottom + span + 1)
        ],
    )


def describe(report: Report, point: SearchPoint) -> str:
    """Format bytes, milliseconds, divergence and drop of a point."""
    parts = [formatting.size(point.bytes)]
    if point.ms is not None:
        parts.append(formatting.milliseconds(point.ms))
    parts.append(f"kl {point.kl:.3g}")
    if point.drop is not None:
        parts.append(f"drop {point.drop:.2f}")
    return ", ".join(parts)


def points(report: Report) -> list[tuple[SearchPoint, str, bool]]:
    """Return the front with its descriptions; the last item is True for the chosen point."""
    if report.search is None:
        return []
    chosen = report.search.chosen
    front = list(report.search.front)
    front += [] if chosen in front else [chosen]
    return [(point, describe(report, point), point == chosen) for point in front]


def rungs(report: Report) -> list[tuple[Rung, str]]:
    """Return the steps of `ptq: auto`, each with what it gained and cost in words."""
    steps = report.search.rungs if report.search is not None else None
    return [(rung, _balance(rung)) for rung in steps or ()]


def _balance(rung: Rung) -> str:
    parts = []
    if rung.drop is not None:
        parts.append(f"drop {rung.drop:.2f}")
    if rung.gained:
        parts.append(f"{rung.gained:+.2f} points")
    if rung.added_bytes:
        sign = "+" if rung.added_bytes > 0 else "-"
        parts.append(f"{sign}{formatting.size(abs(rung.added_bytes))}")
    if rung.added_ms and abs(rung.added_ms) >= SMALLEST_MS:
        parts.append(f"{rung.added_ms:+.2f} ms")
    return ", ".join([*parts, formatting.duration(rung.seconds)])
