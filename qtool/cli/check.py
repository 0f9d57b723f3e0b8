"""``qtool check``: print the plan of a recipe, without calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import exit_codes, print_result
from qtool.cli.console.progress import show_progress

if TYPE_CHECKING:
    from qtool.pipeline.dry_run import CheckResult


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe to check.")],
    trust_code: options.TrustCode = False,
    requantize: options.Requantize = False,
) -> None:
    """Print the plan (value, bits, why), and estimate time, memory and file size."""
    with exit_codes():
        from qtool.recipe.loader import load_recipe

        chosen = load_recipe(recipe)
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.dry_run import check as check_recipe

        with show_progress(quiet=False) as progress:
            run_options = RunOptions(
                trust_code=trust_code, requantize=requantize, progress=progress
            )
            result = check_recipe(chosen, run_options)
        print_result(_table(result))


def _table(result: "CheckResult") -> str:
    """Return the plan as aligned columns, then the estimate."""
    rows = [("VALUE", "BITS", "WHY"), *((v, str(b), why) for v, b, why in result.rows)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{v:<{widths[0]}}  {b:<{widths[1]}}  {why}".rstrip() for v, b, why in rows]
    warnings = [note for note in result.notes if note.startswith("WARNING")]
    return "\n".join([*lines, "", *warnings, f"Estimate: {result.estimate.describe()}"])
