"""``qtool check``: print the plan of a recipe, without calibration."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from qtool.cli.console import options, shorthands
from qtool.cli.console.exits import exit_codes, print_result, printable
from qtool.cli.console.progress import show_progress
from qtool.cli.inspect import inspect
from qtool.cli.ptq import chosen_recipe
from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.pipeline.dry_run import CheckResult


def check(
    files: shorthands.Files = None,
    bits: shorthands.Bits = None,
    count: shorthands.Count = None,
    settings: options.Settings = None,
    threads: options.Threads = None,
    memory: options.Memory = None,
    trust_code: options.TrustCode = False,
    requantize: options.Requantize = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the plan (value, bits, why), and estimate time, memory and file size.

    A model alone, without data, is described as `qtool inspect` does.
    """
    if _is_model_alone(files):
        with exit_codes(json):
            _refuse_options_of_runs(bits, count, settings, threads, memory, requantize or None)
        return inspect(files[0], trust_code=trust_code, json=json, quiet=quiet)
    with exit_codes(json):
        named = shorthands.named_files(files, shorthands.Sources())
        words = shorthands.overrides(bits, count, settings, memory)
        chosen = chosen_recipe(named.recipe, named.model, named.data, words)
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.dry_run import check as check_recipe

        with show_progress(quiet) as progress:
            run_options = RunOptions(
                threads=threads, trust_code=trust_code, requantize=requantize, progress=progress
            )
            result = check_recipe(chosen, run_options)
        print_result(_as_json(result) if json else printable(_table(result)))


def _is_model_alone(files: list[Path] | None) -> TypeGuard[list[Path]]:
    return files is not None and len(files) == 1 and files[0].suffix not in shorthands.RECIPES


def _refuse_options_of_runs(*values: object) -> None:
    """Raise RecipeError where an option that changes a run stands beside a model alone."""
    if any(value is not None for value in values):
        raise RecipeError(
            "found a model alone, which is described as it is, and options of a run; "
            "expected qtool check MODEL DATA, or a recipe"
        )


def _as_json(result: "CheckResult") -> str:
    """Return plan, notes and estimate as one JSON object."""
    plan = [{"name": name, "bits": bits, "why": why} for name, bits, why in result.rows]
    estimate = {k: v for k, v in asdict(result.estimate).items() if v is not None}
    content = {"plan": plan, "notes": result.notes, "estimate": estimate}
    content |= {} if result.search is None else {"search": result.search}
    return json_format.dumps(content, indent=2, ensure_ascii=False)


def _table(result: "CheckResult") -> str:
    """Return the plan as aligned columns, then the estimate."""
    rows = [("VALUE", "BITS", "WHY"), *((v, str(b), why) for v, b, why in result.rows)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{v:<{widths[0]}}  {b:<{widths[1]}}  {why}".rstrip() for v, b, why in rows]
    warnings = [note for note in result.notes if note.startswith("WARNING")]
    lines += ["", *warnings, f"Estimate: {result.estimate.describe()}"]
    return "\n".join(lines if result.search is None else [*lines, f"Search: {result.search}"])
