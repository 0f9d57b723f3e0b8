"""Geometry of the page's charts, in percent of their box; the templates place it."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import qtool.report.render.formatting as formatting
from qtool.report.render.compare import Comparison
from qtool.report.report import Accuracy, Gate, Stage

STEPS = (1, 2, 2.5, 5, 10)
"""Distances of grid lines, times a power of ten."""


@dataclass(frozen=True)
class Tick:
    """A grid line: its place, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Column:
    """One layer, site or epoch in a strip.

    Attributes:
        height: of the bar, in percent; 0 where a line stands in its place.
        tip: what the column shows, in words.
        tone: good, fair, poor, plain or none.
        rank: 1 for the worst; 0 for no mark.
    """

    height: float
    tip: str
    tone: str = "plain"
    rank: int = 0


@dataclass(frozen=True)
class Strip:
    """One chart of a stack that shares its columns.

    Attributes:
        title: what is shown, with its unit.
        columns: in graph order, or in time.
        ticks: grid lines.
        line: an SVG path above the columns, in a box as many units wide as there are columns and
            100 high; "" for none.
        dotted: the line has dots at its points.
        marks: labelled lines across the strip.
        legend: (tone, meaning); the tone "line" is that of the path.
        tall: twice the height.
    """

    title: str
    columns: list[Column]
    ticks: list[Tick]
    line: str = ""
    dotted: bool = False
    marks: tuple[Tick, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    tall: bool = False


@dataclass(frozen=True)
class DropStrip:
    """The drop with its interval and limit on one line."""

    low: float
    high: float
    point: float
    zero: float
    limit: float | None
    left: str
    right: str


@dataclass(frozen=True)
class Dot:
    """One run in the bytes against metric plane."""

    x: float
    y: float
    number: int
    baseline: bool
    tip: str


@dataclass(frozen=True)
class Scatter:
    """All runs, smaller to the left, better upwards."""

    dots: list[Dot]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def ticks(top: float, count: int = 6) -> list[float]:
    """Return round values from 0 to just above `top`, in at most `count` steps.

    Args:
        top: the largest value on the axis.
        count: steps.
    """
    if top <= 0:
        return [0.0, 1.0]
    raw = top / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in STEPS if factor * power >= raw * (1 - 1e-9))
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def axis(values: list[float], unit: Callable[[float], str] = "{:g}".format) -> list[Tick]:
    """Return the grid lines at values from 0 up, the last of which is the top.

    Args:
        values: as :func:`ticks` returns them.
        unit: formats a label.
    """
    return [Tick(share(value, values[-1]), unit(value)) for value in values]


def line(heights: Sequence[float | None]) -> str:
    """Return the SVG path through the middles of columns.

    Args:
        heights: in percent; None interrupts the line.
    """
    parts, before = [], False
    for k, height in enumerate(heights):
        if height is not None:
            parts.append(f"{'L' if before else 'M'}{k + 0.5:g} {100 - height:.4g}h0")
        before = height is not None
    return "".join(parts)


def dashes(heights: Sequence[float | None]) -> str:
    """Return the SVG path of one dash across each column.

    Args:
        heights: in percent; None leaves a column out.
    """
    places = ((k, height) for k, height in enumerate(heights) if height is not None)
    return "".join(f"M{k + 0.25:g} {100 - height:.4g}h.5" for k, height in places)


def drop_strip(accuracy: Accuracy | None, gates: Sequence[Gate]) -> DropStrip | None:
    """Place the drop, its interval and the max_drop limit; None without an interval."""
    if accuracy is None or accuracy.drop is None or accuracy.drop_ci95 is None:
        return None
    low, high = accuracy.drop_ci95
    limit = next((gate.limit for gate in gates if gate.name == "max_drop"), None)
    inside = [low, high, accuracy.drop, 0.0] + ([] if limit is None else [limit])
    margin = (max(inside) - min(inside)) * 0.08 or 0.5
    left, right = min(inside) - margin, max(inside) + margin

    def place(value: float) -> float:
        return share(value - left, right - left)

    return DropStrip(
        low=place(low),
        high=place(high),
        point=place(accuracy.drop),
        zero=place(0.0),
        limit=None if limit is None else place(limit),
        left=f"{low:.2f}".replace("-", "−"),
        right=f"{high:.2f}".replace("-", "−"),
    )


def pair(one: float, other: float) -> tuple[float, float]:
    """Return both values in percent of the larger, for two bars under one another."""
    top = max(one, other)
    return share(one, top), share(other, top)


def stage_bars(stages: Sequence[Stage]) -> list[tuple[Stage, float]]:
    """Return every stage with its share of the longest one."""
    top = max((stage.seconds for stage in stages), default=0.0)
    return [(stage, share(stage.seconds, top)) for stage in stages]


def scatter(comparison: Comparison) -> Scatter | None:
    """Place the runs that have both bytes and a metric; None for fewer than two."""
    measured = [
        (number, row, row.size.value, row.metric.value)
        for number, row in enumerate(comparison.rows, start=1)
        if row.size.value is not None and row.metric.value is not None
    ]
    if len(measured) < 2:
        return None
    x_axis = ticks(max(size for _, _, size, _ in measured), count=4)
    low, high = min(value for *_, value in measured), max(value for *_, value in measured)
    room = max((high - low) * 0.15, 0.05)
    bottom, span = low - room, high - low + 2 * room
    dots = [
        Dot(
            x=share(size, x_axis[-1]),
            y=share(value - bottom, span),
            number=number,
            baseline=row.baseline,
            tip=f"{formatting.clean(row.name)}: {value:.2f}, {formatting.size(size)}",
        )
        for number, row, size, value in measured
    ]
    return Scatter(
        dots=dots,
        x_ticks=axis(x_axis, lambda value: plain(formatting.size(value))),
        y_ticks=ticks_inside(bottom, bottom + span),
    )


def share(value: float, top: float) -> float:
    """Return value / top in percent, clipped to 0..100."""
    return round(max(0.0, min(1.0, value / top)) * 100, 2) if top > 0 else 0.0


def plain(label: str) -> str:
    """Drop the zeros of a round value: 40.0 kB is 40 kB on an axis."""
    return re.sub(r"\.0+ ", " ", label)


def ticks_inside(bottom: float, top: float) -> list[Tick]:
    """Return grid lines at round values inside an axis that does not start at zero."""
    step = ticks(top - bottom)[1]
    first, last = math.ceil(bottom / step), math.floor(top / step)
    values = [step * index for index in range(first, last + 1)]
    return [Tick(share(value - bottom, top - bottom), f"{value:.6g}") for value in values]
