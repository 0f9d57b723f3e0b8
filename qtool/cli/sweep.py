"""``qtool sweep``: run a recipe with several values of some keys, and compare."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import exit_codes, print_result
from qtool.cli.console.progress import show_progress
from qtool.cli.ptq import Folder, opened


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe to vary.")],
    over: Annotated[
        list[str],
        typer.Option("--over", metavar="KEY=A,B", help="Values of a key; several: all pairs."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where the run folders go. [default: runs/<recipe name>-sweep]",
        ),
    ] = None,
    jobs: options.Jobs = 1,
    cluster: options.Cluster = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    trust_code: options.TrustCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a recipe with several values of some keys; finished runs are not run again."""
    with exit_codes(json):
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.search.spread.cluster import Spread
        from qtool.pipeline.search.sweep import run_sweep, variants_of
        from qtool.recipe.loader import load_recipe

        variants = variants_of(over)
        request = Folder(out).request(Path("runs") / f"{recipe.stem}-sweep")
        with show_progress(quiet) as progress:
            run_options = RunOptions(
                seed=seed,
                threads=threads,
                trust_code=trust_code,
                progress=progress,
                spread=Spread(jobs, cluster),
            )
            with opened(request, "sweep", load_recipe(recipe), run_options, quiet) as folder:
                reports = run_sweep(recipe, variants, folder, run_options)
        from qtool.cli.report import terminal_text
        from qtool.report.render import render

        print_result(render(reports, "json") if json else terminal_text(reports))
