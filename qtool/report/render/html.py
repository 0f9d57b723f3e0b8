"""The report as one HTML page: no network, light and dark, complete without its script."""

import re
from functools import cache
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import qtool.report.render.charts as charts
import qtool.report.render.formatting as formatting
import qtool.report.render.layers as layers
import qtool.report.render.runtimes as runtimes
import qtool.report.render.search as search
import qtool.report.render.sensitivity as sensitivity
from qtool.report.gates import parity_gates
from qtool.report.latency_schema import KernelTime
from qtool.report.render.compare import Comparison
from qtool.report.render.training import training_view
from qtool.report.report import Report
from qtool.report.schema import Status
from qtool.report.verdict import drop_words, unit_word, verdict

TONE: dict[Status, str] = {
    "passed": "good",
    "warning": "fair",
    "not proven": "fair",
    "not judged": "fair",
    "failed": "poor",
}

# Kernels whose times are shown without opening the others.
MOST_KERNELS = 10


def html(report: Report) -> str:
    """Return one run's page; every name in it is escaped."""
    weakest, others = layers.layer_values(report)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            verdict=verdict(report),
            parity_gates=parity_gates(report),
            warnings=formatting.warnings(report),
            findings=report.diagnosis or [],
            first=formatting.SHOWN_FINDINGS,
            points=unit_word(report.accuracy),
            layers=layers.layer_strips(report),
            weakest=weakest,
            others=others,
            training=training_view(report),
            strip=charts.drop_strip(report.accuracy, report.gates),
            stages=charts.stage_bars(report.stages),
            total=sum(stage.seconds for stage in report.stages),
            outputs=formatting.outputs(report),
            front=search.front_chart(report),
            costs=sensitivity.cost_strips(report),
            lowest=layers.marked(report),
            kernel_times=kernel_bars(report),
            most=MOST_KERNELS,
        )
    )


def html_comparison(comparison: Comparison) -> str:
    """Return several runs' page, with differences where there is a baseline."""
    return (
        _environment()
        .get_template("compare.html")
        .render(
            comparison=comparison,
            metric=comparison.metric_title,
            scatter=charts.scatter(comparison),
        )
    )


def kernel_bars(report: Report) -> list[tuple[KernelTime, float, str]]:
    """Return every kernel with its share of the slowest one, and its share of the whole."""
    times = (report.latency.kernels if report.latency else None) or []
    total = sum(time.ms for time in times)
    return [
        (time, charts.share(time.ms, times[0].ms), f"{time.ms / total:.0%}" if total else "")
        for time in times
    ]


def breakable(name: str) -> Markup:
    """Return a name as HTML that breaks behind its separators before it breaks elsewhere."""
    return Markup(re.sub(r"(?<=[/._])", "<wbr>", str(escape(formatting.clean(name)))))


@cache
def _environment() -> Environment:
    """Load the templates from the package; escaping on, an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("qtool.report.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["basename"] = lambda path: PurePath(path).name
    for name in (
        *("clean", "size", "amount", "milliseconds", "duration", "memory"),
        "drop",
        "metric",
        "bits",
        "gate_value",
        "limit",
        "quality",
        "signed",
        "ratio",
        "file_parts",
        "sparsity_parts",
        "saturating",
        "prediction",
        "blocks_of",
        "outcome",
        "used_blocks",
        "slow_reason",
    ):
        environment.filters[name] = getattr(formatting, name)
    environment.filters["breakable"] = breakable
    environment.globals.update(
        TONE=TONE,
        layer_sizes=layers.layer_sizes,
        drop_words=drop_words,
        pair=charts.pair,
        sites=sensitivity,
        search=search,
        runtimes=runtimes,
    )
    return environment
