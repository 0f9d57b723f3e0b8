"""``qtool verify``: compare any quantized ONNX file with its float model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import exit_codes
from qtool.cli.console.progress import show_progress
from qtool.cli.ptq import Output, read_baseline, show
from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.recipe.model import Recipe


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The quantized ONNX file, of any tool.")
    ],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FLOAT", help="The float model it was made from."),
    ] = None,
    data: options.Data = None,
    recipe: options.RecipeFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where report.json, .html and .md go. [default: nowhere]"
        ),
    ] = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    trust_code: options.TrustCode = False,
    baseline: options.Baseline = None,
    strict: options.Strict = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Verify a quantized file: accuracy, agreement, size, speed and the kernels that run it."""
    with exit_codes(json):
        chosen = _recipe(recipe, against, data, settings or [])
        if out is not None and out.exists() and not out.is_dir():
            raise RecipeError(f'--out: "{out}" is a file, expected a folder; choose another name')
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.verify_file import verify_file

        with show_progress(quiet) as progress:
            run_options = RunOptions(
                seed=seed,
                threads=threads,
                trust_code=trust_code,
                baseline=read_baseline(baseline),
                progress=progress,
            )
            report = verify_file(file, chosen, run_options, out)
        show(report, out, Output(json, quiet, strict))


def _recipe(
    recipe: Path | None, against: Path | None, data: Path | None, settings: list[str]
) -> "Recipe":
    """Load the recipe file, or make a recipe from float model and data with the defaults."""
    from qtool.recipe.loader import load_recipe, recipe_from_options

    if recipe is not None:
        return load_recipe(recipe, settings, model=against, data=data)
    if against is None or data is None:
        present = (
            "--against" if against is not None else "--data" if data is not None else "neither"
        )
        raise RecipeError(
            f"found {present}, expected --against FLOAT and --data DIR, or --recipe R.yaml; give "
            "the rest"
        )
    return recipe_from_options(against, data, settings)
