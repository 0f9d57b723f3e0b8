"""Geometry of the page's charts, in percent of their box; the templates place it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import qtool.report.render.formatting as formatting
from qtool.report.render.compare import Comparison
from qtool.report.report import Accuracy, Gate, Layer, Report, Stage

MARKED_LAYERS = 3
STEPS = (1, 2, 2.5, 5, 10)
"""Distances of grid lines, times a power of ten."""


@dataclass(frozen=True)
class Tick:
    """A grid line: its place, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class TwoBars:
    """One layer or epoch: a bar above and one below; `rank` is 1 for the worst, 0 for no mark."""

    above: float
    below: float
    tone: str
    tip: str
    rank: int = 0


@dataclass(frozen=True)
class TwoCharts:
    """Two charts, one below the other, with a shared axis; `title` is that of the upper one."""

    title: str
    bars: list[TwoBars]
    above_ticks: list[Tick]
    below_ticks: list[Tick]


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram, in percent of the box."""

    left: float
    width: float
    height: float


@dataclass(frozen=True)
class WeightChart:
    """The weights of a layer, the range of its grid, and the range of every channel."""

    bins: list[Bin]
    grid: tuple[float, float]
    labels: tuple[str, str]
    channels: list[float]


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


def training_chart(report: Report) -> TwoCharts | None:
    """Place the epochs: score of the held-out samples above, loss below; None without training.

    Without labels the score is minus the loss against the float network: less is better.
    """
    training = report.data.training
    if training is None:
        return None
    by_labels = any(epoch.score > 0 for epoch in training.epochs)
    score = ticks(max(abs(epoch.score) for epoch in training.epochs))
    loss = ticks(max((epoch.loss or 0.0 for epoch in training.epochs), default=0.0), count=3)
    bars = [
        TwoBars(
            above=share(abs(epoch.score), score[-1]),
            below=share(epoch.loss or 0.0, loss[-1]),
            tone="good" if epoch.epoch == training.best else "plain",
            tip=f"epoch {epoch.epoch}: {abs(epoch.score):.4g}"
            + ("" if epoch.loss is None else f", loss {epoch.loss:.4g}")
            + _weight_shares(epoch.oscillating, epoch.frozen),
        )
        for epoch in training.epochs
    ]
    return TwoCharts(
        title=_title(by_labels, training.float_score),
        bars=bars,
        above_ticks=[Tick(share(t, score[-1]), f"{t:g}") for t in score],
        below_ticks=[Tick(share(t, loss[-1]), f"{t:g}") for t in loss],
    )


def _title(by_labels: bool, float_score: float | None) -> str:
    """Return the title of the upper bars."""
    if not by_labels:
        return "Loss against the float network"
    return "Top-1 in %" if float_score is None else f"Top-1 in %; float network {float_score:.2f}"


def _weight_shares(oscillating: float | None, frozen: float | None) -> str:
    """Format the shares of oscillating and frozen weights as the end of a line."""
    shares = (("oscillating", oscillating), ("frozen", frozen))
    return "".join(f", {share:.2%} {name}" for name, share in shares if share is not None)


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


def layer_chart(report: Report) -> TwoCharts | None:
    """Place the layers: signal to noise above, bytes below; None where none was measured."""
    layers = report.layers
    if not any(layer.sqnr_db is not None or layer.bytes for layer in layers):
        return None
    sqnr = ticks(max((max(layer.sqnr_db or 0.0, 0.0) for layer in layers), default=0.0))
    weight = ticks(max((layer.bytes or 0 for layer in layers), default=0), count=3)
    marked = [id(layer) for layer in formatting.worst(report, MARKED_LAYERS)]
    if len(layers) <= MARKED_LAYERS:
        marked = marked[:1]
    bars = [
        TwoBars(
            above=share(layer.sqnr_db or 0.0, sqnr[-1]),
            below=share(layer.bytes or 0, weight[-1]),
            tone=formatting.quality(layer.sqnr_db),
            tip=_tip(layer),
            rank=marked.index(id(layer)) + 1 if id(layer) in marked else 0,
        )
        for layer in layers
    ]
    return TwoCharts(
        title="Signal to quantization noise in dB, higher is better",
        bars=bars,
        above_ticks=[Tick(share(value, sqnr[-1]), f"{value:g}") for value in sqnr],
        below_ticks=[
            Tick(share(value, weight[-1]), _plain(formatting.size(value))) for value in weight
        ],
    )


def weight_chart(layer: Layer) -> WeightChart | None:
    """Place the weights of a layer: bins, the range of its grid, and the range of every channel.

    Args:
        layer: of the report; None is returned where it has no histogram.
    """
    shown = layer.weights
    if shown is None:
        return None
    left, right = min(shown.low, shown.grid[0]), max(shown.high, shown.grid[1])
    width = right - left
    step = (shown.high - shown.low) / len(shown.counts)
    top = max(map(math.log1p, shown.counts))  # logarithmic: tails are what widens a range
    bins = [
        Bin(
            share(shown.low + k * step - left, width),
            share(step, width),
            share(math.log1p(count), top),
        )
        for k, count in enumerate(shown.counts)
        if count
    ]
    widest = max(shown.channels, default=0.0)
    return WeightChart(
        bins=bins,
        grid=(share(shown.grid[0] - left, width), share(shown.grid[1] - left, width)),
        labels=(f"{left:.3g}".replace("-", "−"), f"{right:.3g}"),
        channels=[share(limit, widest) for limit in shown.channels],
    )


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
        x_ticks=[
            Tick(share(value, x_axis[-1]), _plain(formatting.size(value))) for value in x_axis
        ],
        y_ticks=_ticks_inside(bottom, bottom + span),
    )


def share(value: float, top: float) -> float:
    """Return value / top in percent, clipped to 0..100."""
    return round(max(0.0, min(1.0, value / top)) * 100, 2) if top > 0 else 0.0


def _plain(label: str) -> str:
    """Drop the zeros of a round value: 40.0 kB is 40 kB on an axis."""
    return re.sub(r"\.0+ ", " ", label)


def _ticks_inside(bottom: float, top: float) -> list[Tick]:
    """Return grid lines at round values inside an axis that does not start at zero."""
    step = ticks(top - bottom)[1]
    first, last = math.ceil(bottom / step), math.floor(top / step)
    values = [step * index for index in range(first, last + 1)]
    return [Tick(share(value - bottom, top - bottom), f"{value:.6g}") for value in values]


def _tip(layer: Layer) -> str:
    parts = [formatting.clean(layer.name)]
    if layer.sqnr_db is not None:
        parts.append(f"{layer.sqnr_db:.1f} dB")
    if layer.bytes is not None:
        parts.append(formatting.size(layer.bytes))
    bits = formatting.bits(layer)
    return ", ".join([*parts, f"{bits} bits" if bits else "float"])
