"""Several runs side by side: the comparison as data, before any format."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import qtool.report.render.formatting as formatting
from qtool.report.report import Report
from qtool.report.schema import Status
from qtool.report.verdict import verdict


@dataclass(frozen=True)
class Cell:
    """One measured value of one run, and its difference from the baseline's.

    Attributes:
        value: the run's own; None where it was not measured.
        delta: run - baseline, in points for the metric, in percent for bytes and milliseconds.
        better: whether the difference is an improvement; None where there is none.
    """

    value: float | None = None
    delta: float | None = None
    better: bool | None = None


@dataclass(frozen=True)
class Row:
    """One run of a comparison."""

    name: str
    report: Report
    status: Status
    baseline: bool
    bits: str
    metric: Cell
    drop: Cell
    agreement: Cell
    size: Cell
    latency: Cell
    speedup: Cell
    sqnr: Cell


@dataclass(frozen=True)
class FloatRow:
    """A float model that some of the runs started from.

    Attributes:
        name: of its file.
        metric: its score; None where it was not measured, as for the others.
        size: bytes of its file.
        latency: milliseconds, as the first run measured them.
    """

    name: str
    metric: float | None
    size: int | None
    latency: float | None


@dataclass(frozen=True)
class Comparison:
    """All runs, and the reasons for differences that are left out.

    Attributes:
        rows: one for each run, the baseline first, then those with the least drop.
        floats: the float models that they started from.
        caveats: sentences about differences that are left out.
        higher_is_better: False where the metric is an error rate.
    """

    rows: list[Row]
    floats: list[FloatRow]
    caveats: list[str]
    higher_is_better: bool = True

    @property
    def baseline(self) -> Row | None:
        """The run that the others are compared with, if any."""
        return next((row for row in self.rows if row.baseline), None)

    @property
    def metric_title(self) -> str:
        """The title of the metric's column; "metric" where runs have several."""
        used = [row.report.accuracy for row in self.rows if row.report.accuracy]
        titles = {formatting.metric(accuracy) for accuracy in used if accuracy.metric}
        return titles.pop() if len(titles) == 1 else "metric"


def compare(runs: Mapping[str, Report], baseline: str | None = None) -> Comparison:
    """Compare runs; differences are taken only where both sides measured the same thing.

    Args:
        runs: reports by the name they are shown under.
        baseline: the name of one of them; it comes first. None: no differences.
    """
    base = runs[baseline] if baseline is not None else None
    order = sorted(runs, key=lambda name: (name != baseline, *_rank(runs[name])))
    caveats = [line for name in order for line in _caveats(name, runs[name], base)]
    rows = [_row(name, runs[name], base, name == baseline) for name in order]
    return Comparison(
        rows, _floats(runs.values()), caveats, all(_higher_is_better(runs[name]) for name in order)
    )


def _rank(report: Report) -> tuple[float, float, int]:
    """Return what orders runs, the best first: drop, disagreement, bytes."""
    accuracy, size = report.accuracy, report.size
    drop = accuracy.drop if accuracy and accuracy.drop is not None else math.inf
    agreement = accuracy.agreement if accuracy and accuracy.agreement is not None else -math.inf
    return drop, -agreement, size.quantized_bytes if size else 0


def _floats(reports: Iterable[Report]) -> list[FloatRow]:
    """Return the float models, each once for every set of samples it was evaluated on."""
    rows: dict[tuple[object, ...], FloatRow] = {}
    for report in reports:
        accuracy, size, latency = report.accuracy, report.size, report.latency
        used = report.data.evaluation or report.data.calibration
        key = (report.model.sha256, accuracy and accuracy.metric, used and used.sha256)
        row = FloatRow(
            PurePath(report.model.path).name,
            accuracy.float if accuracy else None,
            size.float_bytes if size else None,
            latency.float_ms if latency else None,
        )
        rows.setdefault(key, row)
    return list(rows.values())


def _bits(report: Report) -> str:
    """Return the mean width of weights and the most frequent one of activations: 4.3 / 8."""
    mean = report.size.weight_bits_mean if report.size else None
    widths = Counter(str(e.activation_bits) for e in report.layers if e.activation_bits is not None)
    parts = [] if mean is None else [f"{mean:.3g}"]
    return " / ".join([*parts, *(width for width, _ in widths.most_common(1))])


def _row(name: str, report: Report, base: Report | None, is_baseline: bool) -> Row:
    other = None if is_baseline else base
    same_data = other is not None and _same_evaluation(report, other)
    same_timing = other is not None and _same_timing(report, other)
    accuracy, base_accuracy = report.accuracy, other.accuracy if other else None
    up = _higher_is_better(report)
    return Row(
        name=name,
        report=report,
        status=verdict(report).status,
        baseline=is_baseline,
        bits=_bits(report),
        metric=_cell(
            accuracy.quantized if accuracy else None,
            base_accuracy.quantized if base_accuracy and same_data else None,
            higher=up,
        ),
        drop=_cell(
            accuracy.drop if accuracy else None,
            base_accuracy.drop if base_accuracy and same_data else None,
            higher=False,
        ),
        agreement=_cell(
            accuracy.agreement if accuracy else None,
            base_accuracy.agreement if base_accuracy and same_data else None,
        ),
        size=_cell(
            report.size.quantized_bytes if report.size else None,
            other.size.quantized_bytes if other and other.size else None,
            higher=False,
            percent=True,
        ),
        latency=_cell(
            report.latency.quantized_ms if report.latency else None,
            other.latency.quantized_ms if other and other.latency and same_timing else None,
            higher=False,
            percent=True,
        ),
        speedup=_cell(
            report.latency.speedup if report.latency else None,
            other.latency.speedup if other and other.latency and same_timing else None,
        ),
        sqnr=_cell(_lowest(report), _lowest(other)),
    )


def _cell(
    value: float | None, base: float | None, higher: bool = True, percent: bool = False
) -> Cell:
    if value is None or base is None or (percent and base == 0):
        return Cell(value)
    delta = (value / base - 1) * 100 if percent else value - base
    return Cell(value, delta, None if delta == 0 else (delta > 0) == higher)


def _lowest(report: Report | None) -> float | None:
    layers = report.layers if report else []
    return min((layer.sqnr_db for layer in layers if layer.sqnr_db is not None), default=None)


def _higher_is_better(report: Report) -> bool:
    """Return False where a positive drop means a higher value, as for an error rate."""
    accuracy = report.accuracy
    if accuracy and accuracy.lower_is_better:
        return False
    if not accuracy or None in (accuracy.float, accuracy.quantized, accuracy.drop):
        return True
    return (accuracy.float - accuracy.quantized) * accuracy.drop >= 0  # type: ignore[operator]


def _same_evaluation(first: Report, second: Report) -> bool:
    metrics = [report.accuracy.metric if report.accuracy else None for report in (first, second)]
    used = [report.data.evaluation or report.data.calibration for report in (first, second)]
    return metrics[0] == metrics[1] and used[0] == used[1]


def _same_timing(first: Report, second: Report) -> bool:
    def conditions(report: Report) -> tuple[object, ...]:
        timing = report.latency
        cpu = report.environment.get("cpu")
        return (cpu, timing.threads, timing.batch) if timing else (cpu,)

    return conditions(first) == conditions(second)


def _caveats(name: str, report: Report, base: Report | None) -> list[str]:
    if base is None or report is base:
        return []
    lines = []
    if report.accuracy and base.accuracy and not _same_evaluation(report, base):
        lines.append(
            f"{name}: another metric or evaluation set than the baseline; no metric delta."
        )
    if report.latency and base.latency and not _same_timing(report, base):
        lines.append(f"{name}: another CPU, threads or batch than the baseline; no latency delta.")
    if report.model.sha256 != base.model.sha256:
        lines.append(f"{name}: made from another float model than the baseline.")
    return lines
