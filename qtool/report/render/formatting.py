"""Text of numbers and names, the same in every format."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from qtool.report.gates import gate_number
from qtool.report.latency_schema import FastestPair, RuntimeLatency
from qtool.report.names import clean, short_names
from qtool.report.report import Accuracy, Finding, Gate, Latency, Layer, PtqStep, Report, Size
from qtool.report.schema import Provenance

GOOD_SQNR_DB = 25.0
POOR_SQNR_DB = 15.0
"""Bounds of good, fair and poor layers; they colour the report and decide nothing."""
WARNING = "WARNING: "
SHOWN_FINDINGS = 3
NAMED, NAME_WIDTH = 3, 50
"""Names of a list that are shown, and their width."""
METRIC_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "f1": "macro F1",
    "miou": "mIoU",
    "map": "mAP",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "wer": "word error rate",
    "sqnr": "SQNR",
}


def origin(made: Provenance) -> str:
    """Return what a file was made from: qtool 0.1.0, float model 0f9e8d, recipe 1a2b3c."""
    digests = (("float model", made.model_sha256), ("recipe", made.recipe_sha256))
    listed = [f"{name} {clean(sha256)}" for name, sha256 in digests if sha256]
    return ", ".join([f"qtool {clean(made.qtool)}", *listed])


def saturating(risk: bool | list[str]) -> str:
    """Name the first three layers that may saturate; files of other tools have no names."""
    return "some layers" if isinstance(risk, bool) else first_names(risk)


def first_names(names: Sequence[str]) -> str:
    """Return three names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(short_names(names[:NAMED], NAME_WIDTH)) + more


def slow_reason(report: Report) -> str:
    """Return what costs the time of a file that is slower than the float model; else nothing.

    The float operators, with their share of the time where it was measured, and stray Q/DQ.
    """
    timing, kernels = report.latency, report.kernels
    if timing is None or kernels is None or timing.speedup >= 1:
        return ""
    times = timing.kernels or ()
    total = sum(time.ms for time in times)
    costs = [f"{clean(t.op)} {t.ms / total:.0%}" for t in times if t.op in kernels.float and total]
    costs = costs or [f"{clean(op)} x{count}" for op, count in kernels.float.items()]
    parts = [f"in floats: {', '.join(costs[:NAMED])}"] if costs else []
    stray = len(kernels.stray_quantize)
    parts += [f"{stray} stray Q/DQ"] if stray else []
    return "; ".join(parts) or "no float operator costs it: integer kernels gain little here"


def size(count: float) -> str:
    """Return bytes with three significant digits and a decimal unit: 1.09 MB."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def file_parts(file: Size) -> list[tuple[str, int]]:
    """Return the parts of the quantized file and their bytes; none where they were not counted."""
    named = (
        ("codes and numbers", file.payload_bytes),
        ("scales", file.scale_bytes),
        ("code books", file.code_book_bytes),
        ("graph", file.graph_bytes),
    )
    return [(name, count) for name, count in named if count]


def file_parts_line(file: Size) -> str:
    """Return the parts of the file in a line: codes and numbers 1.2 MB, scales 9.1 kB."""
    return ", ".join(f"{name} {size(count)}" for name, count in file_parts(file))


def sparsity_parts(report: Report) -> list[tuple[str, str]]:
    """Return the zeros of the file, its size after deflate, and the channels that were removed."""
    part = report.sparsity
    if part is None:
        return []
    parts = [
        ("weights that are 0", f"{part.sparsity:.1%}"),
        ("after deflate", size(part.compressed_bytes)),
        ("float, after deflate", size(part.float_compressed_bytes)),
    ]
    if (removed := part.channels) is not None:
        macs = f"{amount(removed.float_macs)} -> {amount(removed.macs)}"
        parts.append(("removed channels", f"{removed.removed} of {removed.channels}"))
        parts.append(("MACs", macs))
    return parts


def amount(count: float) -> str:
    """Return a count with three significant digits: 40.8 M."""
    return _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def _scaled(count: float, units: tuple[str, ...]) -> str:
    value = float(count)
    if abs(value) < 999.5:
        return f"{value:.0f} {units[0]}"
    for unit in units[1:-1]:
        value /= 1000
        if abs(value) < 999.5:
            return f"{_three(value)} {unit}"
    return f"{_three(value / 1000)} {units[-1]}"


def _three(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def milliseconds(value: float) -> str:
    """Return a latency: 0.412 ms, 2.10 ms, 48.3 ms, 1.20 s."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.3f} ms" if value < 1 else f"{_three(value)} ms"


def conditions(timing: Latency | FastestPair | RuntimeLatency) -> str:
    """Return the conditions of a latency: 1 thread, batch 1."""
    return f"{timing.threads} thread{'s' if timing.threads != 1 else ''}, batch {timing.batch}"


def duration(seconds: float) -> str:
    """Return a stage's time: 0.3 s, 12 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(megabytes: float) -> str:
    """Return a stage's peak memory: 611 MB, 1.25 GB."""
    return size(megabytes * 1e6)


def metric(accuracy: Accuracy) -> str:
    """Return the metric's name with its unit: top-1 (%)."""
    name = METRIC_TITLES.get(accuracy.metric or "", accuracy.metric or "accuracy")
    return clean(f"{name} ({accuracy.unit})" if accuracy.unit else name)


def score(value: float, unit: str | None) -> str:
    """Return a metric's value with its unit: 91.61 %."""
    return f"{value:.2f} {clean(unit)}" if unit else f"{value:.2f}"


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign and a true minus: +0.12, −0.05, 0.00."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.lstrip("-")
    return f"+{text}" if value > 0 else text.replace("-", "−")


def drop(value: float) -> str:
    """Return a drop for a column of a table: 0.12, none, gained 0.22."""
    shown = f"{value:.2f}"
    return shown if float(shown) > 0 else "none" if float(shown) == 0 else f"gained {shown[1:]}"


def interval(pair: tuple[float, float]) -> str:
    """Return a confidence interval: −0.05 to 0.29."""
    return " to ".join(f"{value:.2f}".replace("-", "−") for value in pair)


def ratio(value: float, more: str, less: str) -> str:
    """Return a factor with the word for its direction: 3.76x smaller, 1.25x larger.

    Args:
        value: the factor; below 1 its inverse is shown.
        more: the word for 1 and above.
        less: the word for below 1.
    """
    if value >= 1 or value <= 0:
        return f"{value:.2f}x {more}"
    return f"{1 / value:.2f}x {less}"


def bits(layer: Layer) -> str:
    """Return weight and activation bits: 8 / 8, 4 / float."""
    pair = [str(part) for part in (layer.weight_bits, layer.activation_bits) if part is not None]
    return " / ".join(pair)


def gate_value(gate: Gate) -> str:
    """Return the value that was compared with the limit of a gate."""
    return gate_number(gate.name, gate.value)


def limit(gate: Gate) -> str:
    """Return the limit of a gate: at most 1."""
    number = gate_number(gate.name, gate.limit, "g")
    if gate.name == "expect":
        return f"expected {number}"
    return f"at {'least' if gate.name.startswith('min_') else 'most'} {number}"


def quality(sqnr_db: float | None) -> str:
    """Return good, fair or poor for a layer's signal to noise, none where it has none."""
    if sqnr_db is None:
        return "none"
    return "good" if sqnr_db >= GOOD_SQNR_DB else "poor" if sqnr_db < POOR_SQNR_DB else "fair"


def worst(report: Report, count: int) -> list[Layer]:
    """Return the layers with the lowest signal to noise, worst first."""
    measured = [layer for layer in report.layers if layer.sqnr_db is not None]
    return sorted(measured, key=lambda layer: (layer.sqnr_db, layer.name))[:count]


@dataclass(frozen=True)
class OutputRow:
    """One line of the table of outputs.

    Attributes:
        name: the output, with the channels of a group.
        source: the value that a group's channels come from; "" for a whole output.
        sqnr_db: None where nothing is lost.
        worst: it has the lowest number of all.
    """

    name: str
    source: str
    sqnr_db: float | None
    worst: bool


def outputs(report: Report) -> list[OutputRow]:
    """Return the outputs and their groups in order; none where there is one output and no group."""
    rows: list[tuple[str, str, float | None]] = []
    for output in report.outputs or ():
        if not output.compared:
            continue
        rows.append((output.name, "", output.sqnr_db))
        for group in output.groups or ():
            colons = ":, " * group.axis
            rows.append(
                (f"{output.name}[{colons}{group.start}:{group.stop}]", group.source, group.sqnr_db)
            )
    lowest = min((db for *_, db in rows if db is not None), default=None)
    if len(rows) < 2:
        return []
    return [OutputRow(*row, worst=row[2] is not None and row[2] == lowest) for row in rows]


def notes(report: Report) -> list[tuple[str, str]]:
    """Return every stage's notes as (stage, note), without the warnings."""
    return [(stage, note) for stage, note in _all_notes(report) if not note.startswith(WARNING)]


def warnings(report: Report) -> list[str]:
    """Return the warnings among the stages' notes, which stand at the top of every format.

    One that is the evidence of a finding is left out: it stands there.
    """
    notes = [note for _, note in _all_notes(report) if note.startswith(WARNING)]
    evidence = [clean(finding.evidence) for finding in report.diagnosis or ()]
    lines = [note.removeprefix(WARNING) for note in notes]
    return [line for line in lines if not any(line in each for each in evidence)]


def _all_notes(report: Report) -> list[tuple[str, str]]:
    return [(clean(stage.name), clean(note)) for stage in report.stages for note in stage.notes]


def first_findings(report: Report) -> list[Finding]:
    """Return the findings that are shown first: those with the largest gain."""
    return (report.diagnosis or [])[:SHOWN_FINDINGS]


def prediction(finding: Finding, unit: str) -> str:
    """Return what a finding's recipe lines are predicted to gain and to cost, in words.

    Args:
        finding: of the diagnosis.
        unit: of the gain, such as points.
    """
    parts = []
    if finding.predicted_gain_points is not None:
        parts.append(f"predicted +{finding.predicted_gain_points:.1f} {unit}")
        if finding.predicted_cost_bytes is not None:
            cost = finding.predicted_cost_bytes
            parts.append(f"+{size(cost)}" if cost else "no bytes more")
    return ", ".join(parts)


def is_unchanged(step: PtqStep) -> bool:
    """Return whether a step did not run, or gave the plan that it started from."""
    return not step.kept and step.before == step.after


def outcome(step: PtqStep) -> str:
    """Return whether a step's plan is used, and why not."""
    if step.kept:
        return "kept"
    if is_unchanged(step):
        return "changed nothing"
    if step.before is not None and step.after is not None and step.after < step.before:
        return "gains too little, rolled back"
    return "no better, rolled back"


def blocks_of(steps: Sequence[PtqStep]) -> list[tuple[str, list[PtqStep]]]:
    """Return the rows of layers and blocks of each step, in the order of the run."""
    runs = groupby(steps, lambda row: row.step if row.block else None)
    return [(name, list(rows)) for name, rows in runs if name is not None]


def used_blocks(blocks: Sequence[PtqStep]) -> str:
    """Return how many layers and blocks of a step are used as it changed them."""
    return f"{sum(block.kept for block in blocks)} of {len(blocks)} layers or blocks used"


def before_after(step: PtqStep) -> str:
    """Return the distance to the float output before and after a step."""
    return f"{step.before:.4g} → {step.after:.4g}"


def simulated_line(accuracy: Accuracy) -> str:
    """Return on how many samples the simulation ran, where these are not all; else nothing."""
    count = accuracy.simulated_samples
    if accuracy.simulated is None or count is None or count >= accuracy.samples:
        return ""
    return f"simulated: {count} of {accuracy.samples} samples"
