"""``qtool qat``: train with quantization in the loop, write the file and report on it."""

from typing import Annotated

import typer

from qtool.cli import options
from qtool.cli.exits import GATE_FAILED, PASSED, exit_codes, print_result
from qtool.cli.progress import show_progress
from qtool.cli.ptq import check_options, chosen_recipe, default_out

Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", min=1, help="Instead of the recipe's qat.epochs."),
]


def qat(
    recipe: options.RecipeFile = None,
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    epochs: Epochs = None,
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
    """Calibrate a model, train it with quantization in the loop, write it, and report."""
    with exit_codes():
        chosen = chosen_recipe(recipe, model, data, settings or [])
        folder = out if out is not None else default_out(recipe, model)
        check_options(folder, device, plan)
        from qtool.pipeline import run_qat

        with show_progress(quiet) as progress:
            report = run_qat(
                chosen,
                folder,
                epochs=epochs,
                seed=seed,
                device=device.value,
                threads=threads,
                plan_file=plan,
                fresh=fresh,
                trust_code=trust_code,
                requantize=requantize,
                progress=progress,
            )
        from qtool.cli.report import terminal_text

        print_result(report.to_json() if json else terminal_text(report, folder=folder))
        raise typer.Exit(PASSED if report.passed else GATE_FAILED)
