"""``qtool report``: show one run, or compare several, in any format."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import PASSED, exit_code, exit_codes, print_result, printable
from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.report.report import Report


class Format(StrEnum):
    """Formats of a written report."""

    terminal = "terminal"
    markdown = "markdown"
    html = "html"
    json = "json"
    junit = "junit"


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Run folders, or their report.json."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="RUN", help="Show differences to this run."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="The format.")] = Format.terminal,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write there instead of to stdout."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 when a run did not pass.")
    ] = False,
    strict: options.Strict = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of report.json.")
    ] = False,
) -> None:
    """Show one run, or several side by side."""
    with exit_codes(form is Format.json):
        from qtool.files import write_text_atomic
        from qtool.report.render import render
        from qtool.report.report import Report

        if schema:
            print_result(json.dumps(Report.json_schema(), indent=2))
            raise typer.Exit(PASSED)
        if not runs:
            raise RecipeError("no run to show; name at least one run folder, or give --schema")
        shown = runs if check or strict or len(runs) == 1 else _finished(runs)
        reports = {str(run): Report.read(run) for run in shown}
        base = Report.read(baseline) if baseline is not None else None
        folder = runs[0] if len(runs) == 1 and runs[0].is_dir() else None
        if out is not None:
            write_text_atomic(out, render(reports, form.value, base, folder=folder))
        elif form is Format.terminal:
            print_result(terminal_text(reports, base, folder))
        else:
            print_result(render(reports, form.value, base))
        codes = [exit_code(read, strict) for read in reports.values()]
        raise typer.Exit(max(codes) if check or strict else PASSED)


def _finished(runs: list[Path]) -> list[Path]:
    """Return the runs without folders that hold no report, which are named on stderr.

    These are interrupted runs, and the folders of sweeps and scans in ``runs/*``. Where nothing
    else is named, all are returned, and reading them says what is missing.
    """
    missing = [run for run in runs if run.is_dir() and not (run / "report.json").exists()]
    if len(missing) == len(runs):
        return runs
    for run in missing:
        print(printable(f"qtool: {run} is left out: it holds no report.json"), file=sys.stderr)
    return [run for run in runs if run not in missing]


def terminal_text(
    reports: Union["Report", Mapping[str, "Report"]],
    baseline: Union["Report", None] = None,
    folder: Path | None = None,
) -> str:
    """Return the terminal view in the width of stdout; with colour only on a terminal.

    Args:
        reports: one, or several by name.
        baseline: to show differences to.
        folder: of the run, to name its files.
    """
    from qtool.report.render import render

    terminal = sys.stdout.isatty()
    # COLUMNS wins; without it a terminal's own width, up to what is read with ease.
    width = shutil.get_terminal_size((80, 24)).columns
    if not os.environ.get("COLUMNS"):
        width = min(width, 120) if terminal else 80
    return render(reports, "terminal", baseline, folder=folder, width=width, color=terminal)
