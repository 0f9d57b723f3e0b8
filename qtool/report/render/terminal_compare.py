"""Several runs on a terminal: one row per run, differences below the values."""

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import qtool.report.render.formatting as formatting
from qtool.report.render.compare import Cell, Comparison
from qtool.report.render.terminal import STATUS_STYLE, put


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print one row per run; with a baseline, the difference is below each value."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
    table.add_column("run", overflow="fold", max_width=26)
    table.add_column("verdict", no_wrap=True)
    for title in _titles(comparison):
        table.add_column(Text(title), justify="right", overflow="fold")
    for row in comparison.rows:
        name = Text(formatting.shorten(row.name, 60), "bold" if row.baseline else "")
        if row.baseline:
            name.append("\nbaseline", "dim")
        table.add_row(
            name,
            Text(row.status, STATUS_STYLE[row.status]),
            _cell(row.metric, lambda value: f"{value:.2f}", ""),
            _cell(row.size, formatting.size, " %"),
            _cell(row.latency, formatting.milliseconds, " %"),
            _cell(row.sqnr, lambda value: f"{value:.1f} dB", ""),
        )
    lines = [Text(formatting.clean(line), "yellow") for line in comparison.caveats]
    put(console, table, *(Padding(line, (0, 0, 0, 1)) for line in lines))


def _titles(comparison: Comparison) -> list[str]:
    metrics = {
        formatting.metric(row.report.accuracy)
        for row in comparison.rows
        if row.report.accuracy and row.report.accuracy.metric
    }
    return [metrics.pop() if len(metrics) == 1 else "metric", "size", "latency", "worst layer"]


def _cell(cell: Cell, shown: Callable[[float], str], unit: str) -> Text:
    if cell.value is None:
        return Text("–", "dim")
    text = Text(shown(cell.value))
    if cell.delta is not None:
        style = "dim" if cell.better is None else "green" if cell.better else "red"
        text.append(f"\n{formatting.signed(cell.delta, 1 if unit else 2)}{unit}", style)
    return text
