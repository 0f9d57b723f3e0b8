"""``qtool ptq``: quantize a model with data and report on the file that was written."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qtool.cli import options
from qtool.cli.exits import GATE_FAILED, PASSED, exit_codes, print_result
from qtool.cli.progress import show_progress
from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.recipe.model import Recipe
    from qtool.report.report import Report


def ptq(
    recipe: options.RecipeFile = None,
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
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
    """Quantize a model after training, write it, and report what the file does."""
    quantize(
        "run_ptq",
        recipe,
        model,
        data,
        out,
        settings or [],
        device=device,
        plan=plan,
        json=json,
        quiet=quiet,
        seed=seed,
        threads=threads,
        fresh=fresh,
        trust_code=trust_code,
        requantize=requantize,
    )


def quantize(
    run: str,
    recipe: Path | None,
    model: Path | None,
    data: Path | None,
    out: Path | None,
    settings: list[str],
    *,
    device: options.Device,
    plan: Path | None,
    json: bool,
    quiet: bool,
    **others: Any,
) -> None:
    """Check the options, run the pipeline, print the report, exit; for ptq and qat.

    Args:
        run: name of the function in ``qtool.pipeline.run``.
        recipe: the recipe file; None: the defaults, for ``model`` and ``data``.
        model: replaces the recipe's model.
        data: replaces the recipe's data.
        out: the run folder; None: see :func:`default_out`.
        settings: texts ``key=value`` of ``--set``.
        device: for calibration and training.
        plan: plan.json of an earlier run, or None.
        json: print the report as JSON.
        quiet: print no progress.
        others: keyword arguments of the pipeline's function.

    Raises:
        typer.Exit: always; see :func:`show` and :func:`exit_codes`.
    """
    folder = out if out is not None else default_out(recipe, model)
    with exit_codes():
        chosen = chosen_recipe(recipe, model, data, settings)
        check_options(folder, device, plan)
        pipeline = importlib.import_module("qtool.pipeline.run")  # what it needs is loaded late

        with show_progress(quiet) as progress:
            report = getattr(pipeline, run)(
                chosen, folder, device=device.value, plan_file=plan, progress=progress, **others
            )
        show(report, folder, json)


def show(report: "Report | None", folder: Path | None, json: bool) -> None:
    """Print a report and exit with its code.

    Args:
        report: None where another process of the training prints it.
        folder: of the run, shown with the report.
        json: print JSON instead of the terminal view.

    Raises:
        typer.Exit: always; 1 where a gate failed.
    """
    if report is None:
        raise typer.Exit(PASSED)
    from qtool.cli.report import terminal_text

    print_result(report.to_json() if json else terminal_text(report, folder=folder))
    raise typer.Exit(PASSED if report.passed else GATE_FAILED)


def chosen_recipe(
    recipe: Path | None, model: Path | None, data: Path | None, settings: list[str]
) -> "Recipe":
    """Return the recipe of the options; without a file the default one."""
    from qtool.recipe.loader import load_recipe, recipe_from_options

    if recipe is not None:
        return load_recipe(recipe, settings, model=model, data=data)
    if model is None or data is None:
        present = (
            "--model" if model is not None else "--data" if data is not None else "none of them"
        )
        raise RecipeError(
            f"found {present}, expected --recipe R.yaml, or --model M and --data DIR; give the rest"
        )
    return recipe_from_options(model, data, settings)


def default_out(recipe: Path | None, model: Path | None) -> Path:
    """Return the run folder of a command without ``--out``, named after the recipe or model."""
    file = recipe if recipe is not None else model
    return Path("runs") / (file.stem if file is not None else "run")


def check_options(folder: Path, device: options.Device, plan: Path | None) -> None:
    """Check options that would otherwise fail after minutes of work.

    Raises:
        RecipeError: ``--out`` is a file, ``--plan`` is not there, or there is no CUDA device.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f'--out: "{folder}" is a file, expected a folder; choose another name')
    if plan is not None and not plan.is_file():
        raise RecipeError(f'--plan: no file "{plan}"; expected the plan.json of an earlier run')
    if device is options.Device.cuda:
        import torch

        if not torch.cuda.is_available():
            raise RecipeError(
                "--device: found cuda, but torch sees no CUDA device here; use --device cpu"
            )
