"""Several runs on a terminal: one row per run, differences below the values."""

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import qtool.report.render.formatting as formatting
from qtool.report.names import short_names, shorten
from qtool.report.render.compare import Cell, Comparison, FloatRow, Row
from qtool.report.render.terminal import STATUS_STYLE, put

# Columns of the terminal from which on the worst layer has room, and below which the verdict stands
# under the name and the latency is left out; columns of all but the names in each case.
WIDE, NARROW = 100, 76
WORST, OTHERS, FEWEST = 13, 64, 48


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print one row per run, the best first, below the float models.

    With a baseline, the difference is below each value.
    """
    wide, narrow = console.width >= WIDE, console.width < NARROW
    others = FEWEST if narrow else OTHERS + WORST * wide
    room = max(12, min(60, console.width - others))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("run", overflow="fold", max_width=room)
    for title in ("bits",) if narrow else ("verdict", "bits"):
        table.add_column(title, no_wrap=True)
    table.add_column(Text(comparison.metric_title), justify="right", overflow="fold")
    for title in ("drop", "size", "speed", *["worst layer"] * wide):
        table.add_column(title, justify="right", no_wrap=narrow)
    for model in comparison.floats:
        table.add_row(*_float_cells(model, room, narrow), *[""] * wide, style="dim")
    names = short_names([row.name for row in comparison.rows], room)
    for name, row in zip(names, comparison.rows, strict=True):
        table.add_row(*_cells(name, row, narrow), *[_cell(row.sqnr, "{:.1f} dB".format, "")] * wide)
    lines = [Text(formatting.clean(line), "yellow") for line in comparison.caveats]
    put(console, table, *(Padding(line, (0, 0, 0, 1)) for line in lines))


def _float_cells(model: FloatRow, room: int, narrow: bool) -> list[str]:
    """Return the cells of a float model, its name in ``room`` columns."""
    latency = "" if narrow else f"\n{formatting.milliseconds(model.latency or 0)}"
    return [
        shorten(model.name, room),
        *(() if narrow else ("float",)),
        "float" if narrow else "32",
        "–" if model.metric is None else f"{model.metric:.2f}",
        "",
        "–" if model.size is None else formatting.size(model.size),
        "–" if model.latency is None else f"1.00x{latency}",
    ]


def _cells(name: str, row: Row, narrow: bool) -> list[Text]:
    """Return the cells of a run."""
    shown = Text(name, "bold" if row.baseline else "")
    status = Text(row.status, STATUS_STYLE[row.status])
    if row.baseline:
        shown.append("\nbaseline", "dim")
    if narrow:
        shown.append("\n").append_text(status)
    speed = _cell(row.speedup, "{:.2f}x".format, "")
    if row.speedup.value is not None and row.speedup.value < 1:
        speed.stylize("yellow")
    if row.latency.value is not None and not narrow:
        speed.append(f"\n{formatting.milliseconds(row.latency.value)}", "dim")
    return [
        shown,
        *(() if narrow else (status,)),
        Text(row.bits or "–"),
        _cell(row.metric, "{:.2f}".format, ""),
        _cell(row.drop, formatting.drop, ""),
        _cell(row.size, formatting.size, " %"),
        speed,
    ]


def _cell(cell: Cell, shown: Callable[[float], str], unit: str) -> Text:
    if cell.value is None:
        return Text("–", "dim")
    text = Text(shown(cell.value).replace("-", "−"))
    if cell.delta is not None:
        style = "dim" if cell.better is None else "green" if cell.better else "red"
        text.append(f"\n{formatting.signed(cell.delta, 1 if unit else 2)}{unit}", style)
    return text
