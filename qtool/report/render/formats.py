"""The table of formats, and the functions that render one run or several in each."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from qtool.errors import RecipeError, suggest
from qtool.files import write_text_atomic
from qtool.report.render.compare import Comparison, Row, compare
from qtool.report.report import Report

Reports = Report | Sequence[Report] | Mapping[str, Report]


@dataclass(frozen=True)
class View:
    """The runs to render, and the settings of the terminal view.

    Attributes:
        runs: reports by the name each is shown under; at least one.
        baseline: the name of the run that differences are taken to, or None.
        folder: the run folder, whose files the terminal view of one run lists.
        width: columns of the terminal view.
        color: whether the terminal view has colour (`NO_COLOR` wins).
    """

    runs: Mapping[str, Report]
    baseline: str | None
    folder: Path | None
    width: int
    color: bool

    @property
    def single(self) -> Report | None:
        """The report, where there is only one."""
        return next(iter(self.runs.values())) if len(self.runs) == 1 else None

    def compare(self) -> Comparison:
        """Compare the runs with the baseline."""
        return compare(self.runs, self.baseline)


# Renderers are imported on first use, so that json and junit load neither rich nor jinja2.


def _terminal(view: View) -> str:
    from rich.console import Console

    from qtool.report.render.terminal import print_report
    from qtool.report.render.terminal_compare import print_comparison

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=view.width,
        force_terminal=view.color,
        color_system="standard" if view.color else None,
        highlight=False,
        legacy_windows=False,
    )
    if view.single:
        print_report(view.single, console, view.folder)
    else:
        print_comparison(view.compare(), console)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _markdown(view: View) -> str:
    from qtool.report.render.markdown import markdown, markdown_comparison

    return markdown(view.single) if view.single else markdown_comparison(view.compare())


def _html(view: View) -> str:
    from qtool.report.render.html import html, html_comparison

    return html(view.single) if view.single else html_comparison(view.compare())


def _json(view: View) -> str:
    return view.single.to_json() if view.single else _json_comparison(view.compare())


def _junit(view: View) -> str:
    from qtool.report.render.junit import junit

    return junit(view.runs)


RENDERERS: dict[str, Callable[[View], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "html": _html,
    "json": _json,
    "junit": _junit,
}
FORMATS = tuple(RENDERERS)


def render(
    reports: Reports,
    fmt: str,
    baseline: Report | None = None,
    *,
    folder: Path | None = None,
    width: int = 80,
    color: bool = False,
) -> str:
    """Render one run, or several side by side, as text.

    Args:
        reports: one report; or several, by the name each is shown under (a list is named after the
            float models).
        fmt: one of FORMATS.
        baseline: differences are taken to it; it may be one of `reports` or another.
        folder: see :class:`View`.
        width: see :class:`View`.
        color: see :class:`View`.

    Raises:
        RecipeError: an unknown format, or no report.
    """
    if fmt not in FORMATS:
        raise RecipeError(
            f"--format {fmt}: unknown format{suggest(fmt, FORMATS)}; known: {', '.join(FORMATS)}"
        )
    runs = named(reports)
    base = _baseline_name(runs, baseline)
    if not runs:
        raise RecipeError("no report to render; name at least one run folder")
    return RENDERERS[fmt](View(runs, base, folder, width, color))


def named(reports: Reports) -> dict[str, Report]:
    """Return reports by name; a name that occurs twice gets a number.

    Args:
        reports: see :func:`render`.
    """
    if isinstance(reports, Mapping):
        return dict(reports)
    runs: dict[str, Report] = {}
    for report in [reports] if isinstance(reports, Report) else reports:
        _add(runs, PurePath(report.model.path).stem or "run", report)
    return runs


def write_run_files(report: Report, folder: str | Path) -> list[Path]:
    """Write report.json, report.html and report.md, each whole or not at all.

    All three are rendered before the first is written.

    Args:
        report: the run.
        folder: the run folder.

    Returns:
        Their paths.
    """
    texts = {
        "report.json": report.to_json(),
        "report.html": render(report, "html"),
        "report.md": render(report, "markdown"),
    }
    paths = []
    for name, text in texts.items():
        paths.append(Path(folder) / name)
        write_text_atomic(paths[-1], text)
    return paths


def _add(runs: dict[str, Report], name: str, report: Report) -> str:
    free = (f"{name} ({number})" if number > 1 else name for number in range(1, len(runs) + 2))
    chosen = next(candidate for candidate in free if candidate not in runs)
    runs[chosen] = report
    return chosen


def _baseline_name(runs: dict[str, Report], baseline: Report | None) -> str | None:
    """Return the baseline's name, after adding it where it is not among the runs."""
    if baseline is None:
        return None
    same = next((name for name, report in runs.items() if report == baseline), None)
    return same if same is not None else _add(runs, "baseline", baseline)


def _json_comparison(comparison: Comparison) -> str:
    """Return one object: the runs in order, each with its report and its differences."""
    runs = [
        {
            "name": row.name,
            "verdict": row.status,
            "delta": _deltas(row),
            "report": json.loads(row.report.to_json()),
        }
        for row in comparison.rows
    ]
    base = {"baseline": comparison.baseline.name} if comparison.baseline else {}
    data = {**base, "runs": runs, "notes": comparison.caveats}
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _deltas(row: Row) -> dict[str, float]:
    cells = {
        "metric": row.metric,
        "agreement": row.agreement,
        "quantized_bytes_percent": row.size,
        "quantized_ms_percent": row.latency,
        "lowest_sqnr_db": row.sqnr,
    }
    return {key: cell.delta for key, cell in cells.items() if cell.delta is not None}
