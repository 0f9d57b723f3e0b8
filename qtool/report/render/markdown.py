"""The report as Markdown: verdict first, then the tables, layers and notes folded."""

import re
from collections.abc import Callable
from pathlib import Path

import qtool.report.render.formatting as formatting
import qtool.report.render.runtimes as runtimes
import qtool.report.render.search as search
import qtool.report.render.sensitivity as sensitivity
from qtool.report.gates import parity_gates
from qtool.report.render.compare import Cell, Comparison
from qtool.report.report import Report
from qtool.report.schema import PtqStep, Status
from qtool.report.verdict import drop_words, unit_word, verdict

MARK: dict[Status, str] = {
    "passed": "✅",
    "warning": "⚠️",
    "not proven": "⚠️",
    "not judged": "❔",
    "failed": "❌",
}
FOLDED_LAYERS = 60


def markdown(report: Report) -> str:
    """Return one run as GitHub-flavoured Markdown; layer names cannot break out of their cells."""
    result = verdict(report)
    source, output = Path(report.model.path).name, Path(report.output.path).name
    blocks = [
        f"### {MARK[result.status]} qtool {text(report.command)}: {result.status}",
        text(result.reason),
        *(f"> ⚠️ {text(line)}" for line in formatting.warnings(report)),
        f"{code(source)} → {code(output)}",
        _diagnosis(report),
        _results(report),
        _runtimes(report),
        _gates(report),
        _steps(report),
        _kernels(report),
        _folded_classes(report),
        _outputs(report),
        _search(report),
        _sites(report),
        _folded_layers(report),
        _folded_sparsity(report),
        _folded_notes(report),
        f"<sub>qtool {text(report.qtool)}, model sha256 {code(report.model.sha256[:12])}, "
        f"output sha256 {code(report.output.sha256[:12])}{_origin(report)}</sub>",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _origin(report: Report) -> str:
    made = report.output.provenance
    return "" if made is None else f"; the file was made by {text(formatting.origin(made))}"


def markdown_comparison(comparison: Comparison) -> str:
    """Return several runs as one table, the best first; differences to the baseline in brackets."""
    rows = [
        [
            code(model.name),
            "float",
            "32",
            "–" if model.metric is None else f"{model.metric:.2f}",
            "",
            "–" if model.size is None else formatting.size(model.size),
            "–" if model.latency is None else "1.00x",
            "–" if model.latency is None else formatting.milliseconds(model.latency),
            "",
        ]
        for model in comparison.floats
    ]
    rows += [
        [
            text(row.name) + (" (baseline)" if row.baseline else ""),
            f"{MARK[row.status]} {row.status}",
            text(row.bits or "–"),
            _cell(row.metric, "{:.2f}".format, ""),
            _cell(row.drop, formatting.drop, ""),
            _cell(row.size, formatting.size, " %"),
            _cell(row.speedup, "{:.2f}x".format, ""),
            _cell(row.latency, formatting.milliseconds, " %"),
            _cell(row.sqnr, "{:.1f} dB".format, ""),
        ]
        for row in comparison.rows
    ]
    titles = ["drop", "size", "speed", "latency", "worst layer"]
    head = ["run", "verdict", "bits", text(comparison.metric_title), *titles]
    blocks = ["### qtool: comparison", _table(head, rows, right=3)]
    blocks += [f"> {text(line)}" for line in comparison.caveats]
    return "\n\n".join(blocks) + "\n"


def text(value: str) -> str:
    """Escape everything that Markdown or HTML interprets, mentions included."""
    safe = formatting.clean(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", safe)
    return re.sub(r"@(?=\w)", "@\u200b", safe).replace("://", ":\u200b//")


def code(value: str) -> str:
    """Return a name as inline code that stays inside its cell."""
    safe = formatting.clean(value).replace("`", "'").replace("|", "¦")
    return f"`{safe}`" if safe.strip() else ""


def _table(head: list[str], rows: list[list[str]], right: int) -> str:
    """Return a Markdown table; columns from `right` on are aligned right."""
    rule = ["---" if column < right else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])


def _cell(cell: Cell, shown: Callable[[float], str], unit: str) -> str:
    if cell.value is None:
        return "–"
    value = shown(cell.value).replace("-", "−")
    if cell.delta is None:
        return value
    return f"{value} ({formatting.signed(cell.delta, 1 if unit else 2)}{unit})"


def _results(report: Report) -> str:
    rows = []
    accuracy, size, timing = report.accuracy, report.size, report.latency
    if accuracy and accuracy.quantized is not None:
        scores = (accuracy.float, accuracy.simulated, accuracy.quantized)
        cells = ["" if score is None else f"{score:.2f}" for score in scores]
        drop = "" if accuracy.drop is None else drop_words(accuracy)
        if accuracy.drop_ci95:
            drop += f", 95 %: {formatting.interval(accuracy.drop_ci95)}"
        if line := formatting.simulated_line(accuracy):
            drop += f"; {line}"
        rows.append([text(formatting.metric(accuracy)), *cells, text(drop)])
    if accuracy and accuracy.agreement is not None:
        rows.append(
            ["agreement (%)", "", "", f"{accuracy.agreement:.2f}", f"{accuracy.samples} samples"]
        )
    if size:
        small = formatting.ratio(size.compression, "smaller", "larger")
        parts = formatting.file_parts_line(size)
        small = f"{small}: {parts}" if parts else small
        cells = [formatting.size(size.float_bytes), "", formatting.size(size.quantized_bytes)]
        rows.append(["file size", *cells, small])
    if pruned := formatting.sparsity_parts(report):
        words = "; ".join(f"{name}: {value}" for name, value in pruned)
        rows.append(["sparsity", "", "", "", text(words)])
    if timing:
        fast = formatting.ratio(timing.speedup, "faster", "slower")
        float_ms = formatting.milliseconds(timing.float_ms)
        cells = [float_ms, "", formatting.milliseconds(timing.quantized_ms)]
        said = [fast, text(formatting.slow_reason(report)), formatting.conditions(timing)]
        rows.append(["latency", *cells, ", ".join(part for part in said if part)])
    return _table(["", "float", "simulated", "quantized", ""], rows, right=1) if rows else ""


def _runtimes(report: Report) -> str:
    rows = [[text(cell) for cell in row.cells] for row in runtimes.rows(report)]
    if not rows:
        return ""
    lines = [f"- {text(line)}" for line, _ in runtimes.fastest(report)]
    parts = [f"#### {text(runtimes.title(report))}", _table(list(runtimes.HEAD), rows, right=2)]
    return "\n\n".join([*parts, "\n".join(lines)]).rstrip()


def _search(report: Report) -> str:
    rows = [
        [text(rung.name), balance, "used" if rung.used else "no better"]
        for rung, balance in search.rungs(report)
    ]
    rows += [
        [text(point.name), shown, "chosen" if chosen else "tried"]
        for point, shown, chosen in search.points(report)
    ]
    return _table(["search", "on calibration samples", ""], rows, right=3) if rows else ""


def _sites(report: Report) -> str:
    rows = [[code(s.name), s.cost, s.part] for s in sensitivity.worst_sites(report)]
    rows += [
        [text(row.site), sensitivity.cost(report, row), row.kind]
        for row in sensitivity.groups(report)
    ]
    return _table(["site", "cost alone", "mostly"], rows, right=3) if rows else ""


def _diagnosis(report: Report) -> str:
    """Return the first findings as a list, each with its recipe lines to paste."""
    unit, items = unit_word(report.accuracy), []
    for number, finding in enumerate(formatting.first_findings(report), 1):
        gain = formatting.prediction(finding, unit)
        item = f"{number}. **{text(finding.finding)}**" + (f" ({text(gain)})" if gain else "")
        item += f"<br>{text(finding.evidence)}"
        if finding.recipe_lines:
            lines = [formatting.clean(line).replace("`", "'") for line in finding.recipe_lines]
            item += "\n" + "\n".join(f"   {line}" for line in ["```yaml", *lines, "```"])
        items.append(item)
    return "\n".join(["#### What next", "", *items]) if items else ""


def _gates(report: Report) -> str:
    gates = [*report.gates, *parity_gates(report)]
    rows = [
        [
            MARK["passed" if gate.passed else "failed"],
            code(gate.name),
            formatting.gate_value(gate),
            formatting.limit(gate),
        ]
        for gate in gates
    ]
    return _table(["", "gate", "value", "limit"], rows, right=2) if rows else ""


def _steps(report: Report) -> str:
    steps = report.ptq or []
    whole = [_step_row(step, step.step) for step in steps if not step.block]
    head = ["", "step", "distance to float", ""]
    parts = [_table(head, whole, right=2)] if whole else []
    for name, blocks in formatting.blocks_of(steps):
        rows = [_step_row(step, step.block or "") for step in blocks]
        table = _table(["", "layer or block", "error of its output", ""], rows, right=2)
        parts.append(_fold(f"{text(name)}: {formatting.used_blocks(blocks)}", table))
    return "\n\n".join(parts)


def _step_row(step: PtqStep, name: str) -> list[str]:
    mark = MARK["passed" if step.kept else "warning"]
    return [mark, code(name), formatting.before_after(step), formatting.outcome(step)]


def _kernels(report: Report) -> str:
    if report.kernels is None:
        return ""
    parts = []
    for title in ("integer", "float"):
        counts: dict[str, int] = getattr(report.kernels, title)
        listed = ", ".join(f"{code(op)} ×{count}" for op, count in counts.items())
        parts.append(f"{title} {listed or 'none'}")
    stray = report.kernels.stray_quantize
    listed = f" ({text(formatting.first_names(stray))})" if stray else ""
    parts.append(f"stray Q/DQ {len(stray)}{listed}")
    if report.kernels.saturation_risk:
        layers = text(formatting.saturating(report.kernels.saturation_risk))
        parts.append(f"**saturation risk** in {layers}")
    return f"Kernels: {'; '.join(parts)}."


def _outputs(report: Report) -> str:
    rows = [
        [
            code(row.name),
            code(row.source),
            "none lost" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            "worst" if row.worst else "",
        ]
        for row in formatting.outputs(report)
    ]
    return _table(["output", "made of", "SQNR dB", ""], rows, right=2) if rows else ""


def _folded_classes(report: Report) -> str:
    changes = (report.accuracy.class_changes if report.accuracy else None) or ()
    rows = [
        [text(c.name), str(c.samples), str(c.lost), str(c.gained), text(c.mistaken_for or "")]
        for c in changes
    ]
    head = ["class", "samples", "lost", "gained", "mostly taken for"]
    return _fold("Classes that changed most", _table(head, rows, right=1)) if rows else ""


def _folded_layers(report: Report) -> str:
    if not report.layers:
        return ""
    rows = [
        [
            code(layer.name),
            text(layer.op),
            formatting.bits(layer),
            text(layer.granularity or ""),
            "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
            "" if layer.bytes is None else formatting.size(layer.bytes),
            "" if layer.payload_bytes is None else formatting.size(layer.payload_bytes),
        ]
        for layer in report.layers[:FOLDED_LAYERS]
    ]
    head = ["layer", "op", "bits w / a", "granularity", "SQNR dB", "bytes", "of these codes"]
    rest = len(report.layers) - len(rows)
    more = f"\n\n{rest} more in report.html." if rest else ""
    return _fold(f"{len(report.layers)} layers", _table(head, rows, right=4) + more)


def _folded_sparsity(report: Report) -> str:
    rows = [
        [code(row.name), str(row.weights), str(row.zeros), f"{row.sparsity:.1%}"]
        for row in (report.sparsity.layers if report.sparsity else [])[:FOLDED_LAYERS]
    ]
    head = ["layer", "weights", "zeros", "sparsity"]
    return _fold(f"Zeros of {len(rows)} layers", _table(head, rows, right=1)) if rows else ""


def _folded_notes(report: Report) -> str:
    lines = [f"- {text(stage)}: {text(note)}" for stage, note in formatting.notes(report)]
    return _fold(f"{len(lines)} notes", "\n".join(lines)) if lines else ""


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
