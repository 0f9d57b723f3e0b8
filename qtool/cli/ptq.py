"""``qtool ptq``: quantize a model with data and report on the file that was written."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
        Command("run_ptq", recipe, model, data, out, tuple(settings or ())),
        Settings(seed, device, threads, plan, trust_code, requantize, fresh),
        Output(json, quiet),
    )


@dataclass(frozen=True)
class Command:
    """A run as the command line names it: the pipeline's function, recipe, model, data, folder."""

    function: str
    recipe: Path | None
    model: Path | None
    data: Path | None
    out: Path | None
    settings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out if self.out is not None else default_out(self.recipe, self.model)


@dataclass(frozen=True)
class Settings:
    """Settings of a run that are not part of its recipe; see ``RunOptions``."""

    seed: int
    device: options.Device
    threads: int | None
    plan: Path | None
    trust_code: bool
    requantize: bool
    fresh: bool


@dataclass(frozen=True)
class Output:
    """Form of the output: the report as JSON, no progress."""

    json: bool
    quiet: bool


def quantize(command: Command, settings: Settings, output: Output) -> None:
    """Do what ``qtool ptq`` and ``qtool qat`` share: check, run, print the report, exit.

    Args:
        command: recipe, model, data, run folder.
        settings: of the run.
        output: form of the output.
    """
    with exit_codes():
        recipe = chosen_recipe(command.recipe, command.model, command.data, [*command.settings])
        check_options(command.folder, settings.device, settings.plan)
        pipeline = importlib.import_module("qtool.pipeline.run")  # what it needs is loaded late
        from qtool.pipeline.context import RunOptions

        with show_progress(output.quiet) as progress:
            run_options = RunOptions(
                seed=settings.seed,
                device=settings.device.value,
                threads=settings.threads,
                trust_code=settings.trust_code,
                requantize=settings.requantize,
                fresh=settings.fresh,
                plan_file=settings.plan,
                progress=progress,
            )
            report = getattr(pipeline, command.function)(recipe, command.folder, run_options)
        show(report, command.folder, output.json)


def show(report: "Report | None", folder: Path | None, json: bool) -> None:
    """Print a report and end with its exit code; without one, another process has it."""
    if report is None:
        raise typer.Exit(PASSED)
    from qtool.cli.report import terminal_text

    print_result(report.to_json() if json else terminal_text(report, folder=folder))
    raise typer.Exit(PASSED if report.passed else GATE_FAILED)


def chosen_recipe(
    recipe: Path | None, model: Path | None, data: Path | None, settings: list[str]
) -> "Recipe":
    """The recipe of the options; without a file the defaults."""
    from qtool.recipe.loader import load_recipe, recipe_from_options

    if recipe is not None:
        return load_recipe(recipe, settings, model=model, data=data)
    if model is None or data is None:
        found = "--model" if model is not None else "--data" if data is not None else "none of them"
        raise RecipeError(
            f"found {found}, expected --recipe R.yaml, or --model M and --data DIR; give the rest"
        )
    return recipe_from_options(model, data, settings)


def default_out(recipe: Path | None, model: Path | None) -> Path:
    """The run folder where none was asked for."""
    named = recipe if recipe is not None else model
    return Path("runs") / (named.stem if named is not None else "run")


def check_options(folder: Path, device: options.Device, plan: Path | None) -> None:
    """Refuse what would fail only after minutes of work."""
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
