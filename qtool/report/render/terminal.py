"""The report on a terminal: tables and bars that fit 60 columns."""

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import qtool.report.render.formatting as formatting
import qtool.report.render.runtimes as runtimes
import qtool.report.render.search as search
import qtool.report.render.sensitivity as sensitivity
from qtool.report.gates import parity_gates
from qtool.report.names import short_names, shorten
from qtool.report.report import Gate, Report
from qtool.report.schema import PtqStep, Status
from qtool.report.verdict import drop_words, unit_word, verdict

WORST_LAYERS = 8
BAR_WIDTH = 16
# Columns of the terminal below which bars are half as long and remarks are left out.
NARROW = 76
RUN_FILES = ("report.html", "report.json", "report.md", "plan.json", "recipe.yaml")
STATUS_STYLE: dict[Status, str] = {
    "passed": "green",
    "warning": "yellow",
    "not proven": "yellow",
    "not judged": "yellow",
    "failed": "red",
}
QUALITY_STYLE = {"good": "green", "fair": "yellow", "poor": "red", "none": "dim"}


# Substitutes on a terminal that has only ASCII; each as wide as the original.
ASCII = str.maketrans("✓✗━─→•–−…", "+x#.>*--~")


def print_report(report: Report, console: Console, folder: Path | None = None) -> None:
    """Print one run.

    Args:
        report: the run.
        console: rich's; it sets width, colour (`NO_COLOR`) and characters.
        folder: the run folder, whose files are then named at the end.
    """
    narrow = console.width < NARROW
    length = BAR_WIDTH // 2 if narrow else BAR_WIDTH
    room = max(16, min(60, console.width - length - 34))
    parts = [
        _header(report),
        _section("Warnings", _warnings(report)),
        _section("What next", _diagnosis(report)),
        _results(report, narrow),
        _section(runtimes.title(report), _runtimes(report)),
        _section("Gates", _gates(report, narrow)),
        _section("Steps (distance to the float output on holdout samples)", _steps(report)),
        _section("Kernels", _kernels(report)),
        _section("Outputs (signal to quantization noise)", _outputs(report, room)),
        _section("Weakest layers (signal to quantization noise)", _layers(report, room, length)),
        _section("Search (calibration samples)", _search(report)),
        _section("Sites that cost most alone (calibration samples)", _sites(report, room)),
        _section("Stages", _stages(report, length)),
        _section("Notes", _notes(report)),
        _section("Made by (sha256)", _origin(report)),
        _section("Files", _files(report, folder)),
    ]
    put(console, *(part for part in parts if part is not None))


def put(console: Console, *parts: RenderableType) -> None:
    """Print, with substitutes for characters that an ASCII terminal lacks."""
    if not console.options.ascii_only:
        console.print(Group(*parts))
        return
    with console.capture() as captured:
        console.print(Group(*parts))
    shown = captured.get().translate(ASCII).encode("ascii", "backslashreplace")
    console.file.write(shown.decode("ascii"))


def _header(report: Report) -> RenderableType:
    result = verdict(report)
    style = STATUS_STYLE[result.status]
    line = Text.assemble(
        (shorten(Path(report.model.path).name, 34), "bold"),
        " → ",
        (shorten(Path(report.output.path).name, 34), "bold"),
    )
    facts = [f"{formatting.amount(report.model.parameters)} parameters"]
    if report.model.macs is not None:
        facts.append(f"{formatting.amount(report.model.macs)} MACs")
    if report.size and report.size.weight_bits_mean is not None:
        facts.append(f"{report.size.weight_bits_mean:.3g} bits per weight")
    facts += [f"opset {report.output.opset}", f"seed {report.seed}"]
    return Panel(
        Group(line, Text(", ".join(facts), "dim"), Text(formatting.clean(result.reason), style)),
        title=Text.assemble(
            "qtool ", formatting.clean(report.command), "  ", (result.status.upper(), style)
        ),
        title_align="left",
        border_style=style,
        box=box.ROUNDED,
        padding=(0, 1),
    )


def _warnings(report: Report) -> Table | None:
    table = _grid(2)
    for line in formatting.warnings(report):
        table.add_row(Text("!", "bold yellow"), Text(line, "yellow", overflow="fold"))
    return table if table.row_count else None


def _diagnosis(report: Report) -> Table | None:
    table = _grid(2)
    unit = unit_word(report.accuracy)
    for number, finding in enumerate(formatting.first_findings(report), 1):
        gain = formatting.prediction(finding, unit)
        head = Text(formatting.clean(finding.finding), "bold")
        table.add_row(Text(f"{number}."), head.append(f" ({gain})" if gain else "", "not bold"))
        table.add_row("", Text(formatting.clean(finding.evidence), "dim", overflow="fold"))
        for line in finding.recipe_lines:
            table.add_row("", Text(formatting.clean(line), "cyan", overflow="fold"))
    rest = len(report.diagnosis or ()) - formatting.SHOWN_FINDINGS
    if rest > 0:
        table.add_row("", Text(f"and {rest} more in report.html", "dim"))
    return table if table.row_count else None


def _results(report: Report, narrow: bool) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=False)
    table.add_column("", no_wrap=True)
    for title in ("float", "simulated", "quantized"):
        table.add_column(title, justify="right", no_wrap=True, style="" if title else "dim")
    table.add_column("", overflow="fold")
    if report.accuracy and report.accuracy.quantized is not None:
        accuracy = report.accuracy
        scores = (accuracy.float, accuracy.simulated, accuracy.quantized)
        cells = ["" if score is None else f"{score:.2f}" for score in scores]
        table.add_row(
            Text(formatting.metric(accuracy)), *cells[:2], Text(cells[2], "bold"), _drop(report)
        )
    if report.accuracy and report.accuracy.agreement is not None:
        agreement = f"{report.accuracy.agreement:.2f}"
        samples = f"with float, {report.accuracy.samples} samples"
        table.add_row("agreement (%)", "", "", Text(agreement, "bold"), Text(samples, "dim"))
    if report.size:
        size = report.size
        small = Text(formatting.ratio(size.compression, "smaller", "larger"))
        if (parts := formatting.file_parts_line(size)) and not narrow:
            small.append(f"\n{parts}", "dim")
        cells = [formatting.size(size.float_bytes), "", formatting.size(size.quantized_bytes)]
        table.add_row("file size", *cells[:2], Text(cells[2], "bold"), small)
    for number, (name, value) in enumerate(formatting.sparsity_parts(report)):
        line = f"{name}: {value}"
        table.add_row("" if number else "sparsity", "", "", "", Text(line, "dim" if number else ""))
    if report.latency:
        timing = report.latency
        style = "yellow" if timing.speedup < 1 else ""
        fast = Text(formatting.ratio(timing.speedup, "faster", "slower"), style)
        if reason := formatting.slow_reason(report):
            fast.append(f"\n{reason}", "yellow")
        fast.append(f"\n{formatting.conditions(timing)}", "dim")
        float_ms = formatting.milliseconds(timing.float_ms)
        cells = [float_ms, "", formatting.milliseconds(timing.quantized_ms)]
        table.add_row("latency", *cells[:2], Text(cells[2], "bold"), fast)
    return Padding(table, (1, 0, 0, 1))


def _drop(report: Report) -> Text:
    accuracy = report.accuracy
    if accuracy is None or accuracy.drop is None:
        return Text()
    text = Text(formatting.clean(drop_words(accuracy)))
    if accuracy.drop_ci95:
        text.append(f"\n95 %: {formatting.interval(accuracy.drop_ci95)}", "dim")
    if line := formatting.simulated_line(accuracy):
        text.append(f"\n{line}", "dim")
    return text


def _runtimes(report: Report) -> Table | None:
    table = _grid(len(runtimes.HEAD))
    for row in runtimes.rows(report):
        style = "yellow" if row.slow else ""
        *head, float_ms, quantized_ms, remark = row.cells
        times = (Text(float_ms, "dim", justify="right"), Text(quantized_ms, justify="right"))
        table.add_row(*head, *times, Text(remark, style))
    if not table.row_count:
        return None
    whole = _grid(1)
    whole.add_row(table)
    for line, slower in runtimes.fastest(report):
        whole.add_row(Text(line, "yellow" if slower else "", overflow="fold"))
    return whole


def _gates(report: Report, narrow: bool) -> Table | None:
    table = _grid(4)
    for gate in report.gates:
        table.add_row(*_gate(gate), "")
    for gate in parity_gates(report):
        table.add_row(*_gate(gate), Text("" if narrow else "always on", "dim"))
    return table if table.row_count else None


def _gate(gate: Gate) -> tuple[Text, str, str]:
    mark = Text("✓", "green") if gate.passed else Text("✗", "bold red")
    name = formatting.clean(gate.name)
    return Text.assemble(mark, " ", name), formatting.gate_value(gate), formatting.limit(gate)


def _steps(report: Report) -> Table | None:
    table = _grid(4)
    whole = [step for step in report.ptq or () if not step.block]  # blocks: the other reports
    for step in whole:
        mark, style = _step_mark(step)
        table.add_row(
            Text.assemble(mark, " ", formatting.clean(step.step)),
            formatting.before_after(step),
            Text(formatting.duration(step.seconds), justify="right"),
            Text(formatting.outcome(step), style),
        )
    return table if table.row_count else None


def _step_mark(step: PtqStep) -> tuple[Text, str]:
    """Return the mark of a step and the style of its outcome."""
    if step.kept:
        return Text("✓", "green"), "dim"
    if formatting.is_unchanged(step):
        return Text("–", "dim"), "dim"
    return Text("✗", "yellow"), "yellow"


def _kernels(report: Report) -> Table | None:
    kernels = report.kernels
    if kernels is None:
        return None
    table = _grid(2)
    for title, counts in (("integer", kernels.integer), ("float", kernels.float)):
        listed = ", ".join(f"{formatting.clean(op)} x{count}" for op, count in counts.items())
        style = "green" if title == "integer" else "yellow" if counts else "dim"
        table.add_row(Text(f"{sum(counts.values())} {title}", style), Text(listed or "–"))
    stray = formatting.first_names(kernels.stray_quantize)
    count = len(kernels.stray_quantize)
    style = "yellow" if count else "dim"
    table.add_row(Text(f"{count} stray Q/DQ", style), Text(stray or "none left unfused", style))
    if kernels.saturation_risk:
        layers = formatting.saturating(kernels.saturation_risk)
        risk = f"{layers}: pairs of products may leave int16"
        table.add_row(Text("saturation", "red"), Text(risk))
    return table


def _layers(report: Report, room: int, length: int) -> Table | None:
    shown = formatting.worst(report, WORST_LAYERS)
    if not shown:
        return None
    top = max((layer.sqnr_db or 0.0 for layer in report.layers), default=0.0)
    table = _grid(5)
    names = short_names([layer.name for layer in shown], room)
    for layer, name in zip(shown, names, strict=True):
        value = layer.sqnr_db or 0.0
        style = QUALITY_STYLE[formatting.quality(layer.sqnr_db)]
        table.add_row(
            Text(name),
            Text(shorten(layer.op, 10), "dim"),
            Text(formatting.bits(layer), "dim"),
            Text(f"{value:.1f} dB", style, justify="right"),
            bar(value, top, length, style),
        )
    rest = sum(layer.sqnr_db is not None for layer in report.layers) - len(shown)
    if rest:
        table.add_row(Text(f"and {rest} better", "dim"))
    return table


def _outputs(report: Report, room: int) -> Table | None:
    table = _grid(4)
    rows = formatting.outputs(report)
    names = short_names([row.name for row in rows], room)
    for row, name in zip(rows, names, strict=True):
        shown = "none lost" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
        table.add_row(
            Text(name),
            Text(shown, QUALITY_STYLE[formatting.quality(row.sqnr_db)], justify="right"),
            Text("worst" if row.worst else "", "yellow"),
            Text(shorten(row.source, 24), "dim"),
        )
    return table if table.row_count else None


def _search(report: Report) -> Table | None:
    table = _grid(3)
    for rung, balance in search.rungs(report):
        used = Text("used" if rung.used else "no better", "green" if rung.used else "yellow")
        table.add_row(Text(formatting.clean(rung.name)), Text(balance), used)
    for point, shown, chosen in search.points(report):
        mark = Text("chosen" if chosen else "", "green")
        table.add_row(Text(formatting.clean(point.name), "bold"), Text(shown), mark)
    return table if table.row_count else None


def _sites(report: Report, room: int) -> Table | None:
    table = _grid(3)
    sites = sensitivity.worst_sites(report)
    names = short_names([site.name for site in sites], room)
    for site, name in zip(sites, names, strict=True):
        table.add_row(Text(name), Text(site.cost), Text(site.part and f"mostly {site.part}", "dim"))
    for row in sensitivity.groups(report):
        name = "all sites" if row.site == "all" else f"all {row.site.removeprefix('op:')}"
        kind = "" if row.kind == "both" else f"{row.kind} only"
        table.add_row(Text(name, "bold"), Text(sensitivity.cost(report, row)), Text(kind, "dim"))
    return table if table.row_count else None


def _stages(report: Report, length: int) -> Table | None:
    if not report.stages:
        return None
    table = _grid(4)
    top = max(stage.seconds for stage in report.stages)
    for stage in report.stages:
        table.add_row(
            Text(shorten(stage.name, 20)),
            Text(formatting.duration(stage.seconds), justify="right"),
            bar(stage.seconds, top, length, "cyan"),
            Text("cached" if stage.cached else formatting.memory(stage.peak_rss_mb or 0), "dim")
            if stage.cached or stage.peak_rss_mb is not None
            else "",
        )
    table.add_row(
        Text("all", "dim"),
        Text(
            formatting.duration(sum(stage.seconds for stage in report.stages)),
            "dim",
            justify="right",
        ),
    )
    return table


def _notes(report: Report) -> Table | None:
    table = _grid(2)
    for stage, note in formatting.notes(report):
        table.add_row(Text(f"• {stage}", "dim"), Text(note, overflow="fold"))
    return table if table.row_count else None


def _origin(report: Report) -> Text | None:
    made = report.output.provenance
    return None if made is None else Text(formatting.origin(made), "dim", overflow="fold")


def _files(report: Report, folder: Path | None) -> Table | None:
    table = _grid(2)
    for name in (report.output.path, *RUN_FILES) if folder else ():
        path = Path(folder or ".") / name
        if path.is_file():
            table.add_row(
                Text(formatting.clean(str(path)), overflow="fold"),
                Text(formatting.size(path.stat().st_size), "dim", justify="right"),
            )
    return table if table.row_count else None


def bar(value: float, top: float, width: int, style: str) -> Text:
    """Return a horizontal bar of `width` cells, filled to value / top."""
    filled = round(max(0.0, min(1.0, value / top)) * width) if top > 0 else 0
    return Text.assemble(("━" * filled, style), ("─" * (width - filled), "dim"))


def _grid(columns: int) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(columns):
        table.add_column(overflow="fold")
    return table


def _section(title: str, body: RenderableType | None) -> RenderableType | None:
    if body is None:
        return None
    parts: Iterable[RenderableType] = (Text(title, "bold"), Padding(body, (0, 0, 0, 2)))
    return Padding(Group(*parts), (1, 0, 0, 1))
