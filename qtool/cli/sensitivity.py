"""``qtool sensitivity``: what each site of the quantized network costs."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import options
from qtool.cli.console.exits import exit_codes
from qtool.cli.console.progress import show_progress
from qtool.cli.ptq import Folder, Output, Settings, check_options, opened, show


def sensitivity(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe to measure.")],
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", metavar="N", min=2, help="Calibration samples to compare outputs on."
        ),
    ] = 64,
    jobs: options.Jobs = 1,
    cluster: options.Cluster = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    device: options.ComputeDevice = options.Device.cpu,
    threads: options.Threads = None,
    plan: options.Plan = None,
    trust_code: options.TrustCode = False,
    requantize: options.Requantize = False,
    fresh: options.Fresh = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what each site costs, alone and with all before it; evaluate nothing."""
    with exit_codes(json):
        from qtool.recipe.loader import load_recipe

        chosen = load_recipe(recipe, settings or [])
        check_options(device, plan)
        request = Folder(out, overwrite).request(Path("runs") / f"{recipe.stem}-sensitivity")
        run_settings = Settings(
            seed, device, threads, plan, trust_code, requantize, fresh, jobs=jobs, cluster=cluster
        )
        from qtool.pipeline.search.sensitivity import SensitivityOptions, run_sensitivity

        with show_progress(quiet) as progress:
            run_options = run_settings.run_options(progress)
            name = f"sensitivity of {samples}"
            with opened(request, name, chosen, run_options, quiet) as folder:
                extent = SensitivityOptions(samples)
                report = run_sensitivity(chosen, folder, run_options, extent)
        show(report, folder, Output(json, quiet))
