"""The report in every format: terminal, markdown, html, json, junit."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from qtool.errors import RecipeError, suggest
from qtool.files import write_text_atomic
from qtool.report.render.compare import Comparison, Row, compare
from qtool.report.report import Report

FORMATS = ("terminal", "markdown", "html", "json", "junit")
Reports = Report | Sequence[Report] | Mapping[str, Report]


def render(
    reports: Reports,
    fmt: str,
    baseline: Report | None = None,
    *,
    folder: Path | None = None,
    width: int = 80,
    color: bool = False,
) -> str:
    """Return one run, or several side by side, as text.

    Args:
        reports: one report; or several, by the name each is shown under (a list is named after the
            float models).
        fmt: one of FORMATS.
        baseline: differences are taken to it; it may be one of `reports` or another.
        folder: the run folder, whose files the terminal view of one run then names.
        width: columns of the terminal view.
        color: whether the terminal view carries colour (`NO_COLOR` wins).

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
    if fmt == "junit":
        from qtool.report.render.junit import junit

        return junit(runs)
    if fmt == "terminal":
        return _terminal(runs, base, folder, width, color)
    if len(runs) == 1:
        return _single(next(iter(runs.values())), fmt)
    return _several(compare(runs, base), fmt)


def named(reports: Reports) -> dict[str, Report]:
    """Return reports by name; a name that comes twice gets a number."""
    if isinstance(reports, Mapping):
        return dict(reports)
    runs: dict[str, Report] = {}
    for report in [reports] if isinstance(reports, Report) else reports:
        _add(runs, PurePath(report.model.path).stem or "run", report)
    return runs


def write_run_files(report: Report, folder: str | Path) -> list[Path]:
    """Write report.json, report.html and report.md, each whole or not at all.

    All three are rendered before the first is written.

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


def _terminal(
    runs: dict[str, Report], base: str | None, folder: Path | None, width: int, color: bool
) -> str:
    from rich.console import Console

    from qtool.report.render.terminal import print_report
    from qtool.report.render.terminal_compare import print_comparison

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        legacy_windows=False,
    )
    if len(runs) == 1:
        print_report(next(iter(runs.values())), console, folder)
    else:
        print_comparison(compare(runs, base), console)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _single(report: Report, fmt: str) -> str:
    from qtool.report.render.html import html
    from qtool.report.render.markdown import markdown

    return {"json": Report.to_json, "html": html, "markdown": markdown}[fmt](report)


def _several(comparison: Comparison, fmt: str) -> str:
    from qtool.report.render.html import html_comparison
    from qtool.report.render.markdown import markdown_comparison

    table = {"json": _json, "html": html_comparison, "markdown": markdown_comparison}
    return table[fmt](comparison)


def _json(comparison: Comparison) -> str:
    """Return one object: the runs in order, each with its report and its differences."""
    runs = [
        {
            "name": row.name,
            "verdict": row.level,
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
