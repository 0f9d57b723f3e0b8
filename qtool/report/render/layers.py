"""Charts of layers: noise, bits and bytes of all, histograms of the values of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import qtool.report.render.formatting as formatting
from qtool.report.layer_schema import Histogram, Layer
from qtool.report.render.charts import (
    Column,
    Strip,
    Tick,
    axis,
    dashes,
    line,
    plain,
    share,
    ticks,
)
from qtool.report.report import Report

MARKED_LAYERS = 3
TONES = (("good", "25 and more"), ("fair", "15 to 25"), ("poor", "below 15"))


@dataclass(frozen=True)
class HistogramChart:
    """One histogram.

    Attributes:
        title: the values.
        shown: the histogram.
        path: its bars, in a box of 100 by 100, with logarithmic heights.
        grid: left and right end of the grid, in percent.
        box: left and right end of the bins, in percent.
        range: of the grid, in words.
        labels: smallest and largest value of the axis.
        channels: bars of the channels, in a box of 100 by 100.
        channel_word: what a channel is.
        note: share of the values that the grid cuts off; "" where it is not measured.
    """

    title: str
    shown: Histogram
    path: str
    grid: tuple[float, float]
    box: tuple[float, float]
    range: str
    labels: tuple[str, str]
    channels: str
    channel_word: str
    note: str


@dataclass(frozen=True)
class LayerValues:
    """The histograms of one layer."""

    layer: Layer
    charts: list[HistogramChart]


def layer_strips(report: Report) -> list[Strip]:
    """Place the layers: noise, bits and bytes; none where nothing of them was measured."""
    layers = report.layers
    measured = any(layer.sqnr_db is not None for layer in layers)
    if not measured and not any(layer.bytes for layer in layers):
        return []
    noise = [_noise_strip(report)] if measured else []
    return [*noise, _bits_strip(layers), _bytes_strip(layers)]


def layer_values(report: Report) -> tuple[list[LayerValues], list[LayerValues]]:
    """Return the histograms of the weakest layers, worst first, and of the others in order."""
    weakest = formatting.worst(report, MARKED_LAYERS)
    others = [layer for layer in report.layers if not any(layer is weak for weak in weakest)]
    first, rest = (
        [LayerValues(layer, charts) for layer in layers if (charts := _histograms(layer))]
        for layers in (weakest, others)
    )
    return first, rest


def layer_sizes(report: Report) -> list[tuple[str, str]]:
    """Return (title, key) of the sizes that any layer has."""
    sizes = (
        ("Bytes", "bytes"),
        ("Codes", "payload_bytes"),
        ("Scales", "scale_bytes"),
        ("Code book", "code_book_bytes"),
    )
    return [(title, key) for title, key in sizes if any(getattr(x, key) for x in report.layers)]


def marked(report: Report) -> list[Layer]:
    """Return the layers that the chart marks, worst first; one where there are few."""
    few = len(report.layers) <= MARKED_LAYERS
    return formatting.worst(report, 1 if few else MARKED_LAYERS)


def _noise_strip(report: Report) -> Strip:
    """Place the signal to noise of each layer alone as bars, with all before it as a line."""
    layers = report.layers
    both = [db for layer in layers for db in (layer.sqnr_db, layer.cumulative_sqnr_db)]
    top = ticks(max((max(db or 0.0, 0.0) for db in both), default=0.0))
    ranks = {id(layer): rank for rank, layer in enumerate(marked(report), 1)}
    cumulative = [
        None if layer.cumulative_sqnr_db is None else share(layer.cumulative_sqnr_db, top[-1])
        for layer in layers
    ]
    path = line(cumulative)
    return Strip(
        title="Signal to quantization noise in dB, higher is better",
        columns=[
            Column(
                share(layer.sqnr_db or 0.0, top[-1]),
                _tip(layer),
                formatting.quality(layer.sqnr_db),
                ranks.get(id(layer), 0),
            )
            for layer in layers
        ],
        ticks=axis(top),
        line=path,
        legend=(
            *TONES,
            *((("none", "not measured"),) if any(x.sqnr_db is None for x in layers) else ()),
            *((("line", "with all layers before it quantized"),) if path else ()),
        ),
        tall=True,
    )


def _bits_strip(layers: Sequence[Layer]) -> Strip:
    """Place the bits of weights as bars, those of activations as a line; float is above all."""
    widths = [bits for layer in layers for bits in (layer.weight_bits, layer.activation_bits)]
    top = max(8, *(bits for bits in widths if isinstance(bits, int)), 0)
    floats = "float" in widths
    whole = 1.25 * top if floats else top

    def height(bits: int | str | None) -> float | None:
        if isinstance(bits, str):  # codes of grids that are found at run time have 8 bits
            return 100.0 if bits == "float" else share(8, whole)
        return None if bits is None else share(bits, whole)

    path = dashes([height(layer.activation_bits) for layer in layers])
    return Strip(
        title="Bits",
        columns=[
            Column(
                height(layer.weight_bits) or 0.0,
                _tip(layer),
                "plain" if isinstance(layer.weight_bits, int) else "none",
            )
            for layer in layers
        ],
        ticks=[
            *(Tick(share(bits, whole), f"{bits:g}") for bits in (0, top / 2, top)),
            *([Tick(100.0, "float")] if floats else ()),
        ],
        line=path,
        legend=(("brandkey", "weights"), *((("line", "activations"),) if path else ())),
    )


def _bytes_strip(layers: Sequence[Layer]) -> Strip:
    top = ticks(max((layer.bytes or 0 for layer in layers), default=0), count=3)
    return Strip(
        title="Bytes in the file",
        columns=[Column(share(layer.bytes or 0, top[-1]), _tip(layer)) for layer in layers],
        ticks=axis(top, lambda value: plain(formatting.size(value))),
    )


def _histograms(layer: Layer) -> list[HistogramChart]:
    charts = []
    if layer.weights is not None:
        charts.append(_histogram("Weights", layer.weights, "output channel"))
    if layer.inputs is not None:
        charts.append(_histogram("Inputs", layer.inputs, "channel"))
    return charts


def _histogram(title: str, shown: Histogram, channel: str) -> HistogramChart:
    """Place the bins, the range of the grid, and the range of every channel."""
    left, right = min(shown.low, shown.grid[0]), max(shown.high, shown.grid[1])
    width = right - left
    box = (share(shown.low - left, width), share(shown.high - left, width))
    # Logarithmic: the few values in the tails are what widens a range.
    heights = [math.log1p(count) for count in shown.counts]
    return HistogramChart(
        title=title,
        shown=shown,
        path=bars(heights),
        grid=(share(shown.grid[0] - left, width), share(shown.grid[1] - left, width)),
        box=box,
        range=" to ".join(f"{end:.3g}" for end in shown.grid).replace("-", "−"),
        labels=(f"{left:.3g}".replace("-", "−"), f"{right:.3g}".replace("-", "−")),
        channels=bars(shown.channels, gap=0.15),
        channel_word=channel,
        note="" if shown.outside is None else f"{_percent(shown.outside)} outside the grid",
    )


def _percent(part: float) -> str:
    """Return a share in %; one that is too small to show is not called 0."""
    return "below 0.01 %" if 0 < part < 5e-5 else f"{100 * part:.2f} %"


def bars(values: Sequence[float], gap: float = 0.0) -> str:
    """Return bars as an SVG path in a box of 100 by 100, the largest as high as the box.

    Args:
        values: 0 or more each; one of 0 has no bar.
        gap: between two bars, as a share of their distance.
    """
    top, step = max(values, default=0.0), 100 / max(len(values), 1)
    return "".join(
        f"M{(k + gap / 2) * step:.4g} 100V{100 - share(value, top):.3g}"
        f"H{(k + 1 - gap / 2) * step:.4g}V100z"
        for k, value in enumerate(values)
        if value > 0
    )


def _tip(layer: Layer) -> str:
    parts = [formatting.clean(layer.name)]
    if layer.sqnr_db is not None:
        parts.append(f"{layer.sqnr_db:.1f} dB")
    if layer.cumulative_sqnr_db is not None:
        parts.append(f"{layer.cumulative_sqnr_db:.1f} dB with all before it")
    if layer.bytes is not None:
        parts.append(formatting.size(layer.bytes))
    bits = formatting.bits(layer)
    return ", ".join([*parts, f"{bits} bits" if bits else "float"])
