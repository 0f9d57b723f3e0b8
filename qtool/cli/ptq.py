"""``qtool ptq``: quantize a model with data and report on the written file."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qtool.cli.console import options, shorthands
from qtool.cli.console.exits import PASSED, exit_code, exit_codes, print_result
from qtool.cli.console.progress import show_progress
from qtool.errors import RecipeError
from qtool.qat.distributed import expected

if TYPE_CHECKING:
    from qtool.pipeline.context import RunOptions
    from qtool.pipeline.folders.choice import Request
    from qtool.progress import Progress
    from qtool.recipe.model import Recipe
    from qtool.recipe.overrides import Override
    from qtool.report.report import Report


def ptq(
    files: shorthands.Files = None,
    recipe: options.RecipeFile = None,
    model: options.Model = None,
    data: options.Data = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    bits: shorthands.Bits = None,
    count: shorthands.Count = None,
    settings: options.Settings = None,
    seed: options.Seed = 0,
    device: options.ComputeDevice = options.Device.cpu,
    threads: options.Threads = None,
    memory: options.Memory = None,
    plan: options.Plan = None,
    trust_code: options.TrustCode = False,
    requantize: options.Requantize = False,
    fresh: options.Fresh = False,
    baseline: options.Baseline = None,
    jobs: options.Jobs = 1,
    cluster: options.Cluster = None,
    strict: options.Strict = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Quantize a model after training, write it, and report what the file does."""
    with exit_codes(json):
        named = shorthands.named_files(files, shorthands.Sources(recipe, model, data))
        words = shorthands.overrides(bits, count, settings, memory)
    quantize(
        Command("run_ptq", named, Folder(out, overwrite), tuple(words)),
        Settings(
            *(seed, device, threads, plan, trust_code, requantize, fresh, baseline, jobs, cluster)
        ),
        Output(json, quiet, strict),
    )


@dataclass(frozen=True)
class Folder:
    """The run folder, as the command line names it; see ``Request``."""

    out: Path | None
    overwrite: bool = False

    def request(self, default: Path) -> "Request":
        """Return the request of the pipeline.

        Args:
            default: the folder without ``--out``.

        Raises:
            RecipeError: ``--out`` names a file.
        """
        from qtool.pipeline.folders.choice import Request

        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise RecipeError(
                f'--out: "{self.out}" is a file, expected a folder; choose another name'
            )
        return Request(default, self.out, self.overwrite)


@dataclass(frozen=True)
class Command:
    """Pipeline function, files and overrides of a run, as the command line names them."""

    function: str
    sources: shorthands.Sources
    folder: Folder
    settings: tuple["str | Override", ...] = ()


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
    baseline: Path | None = None
    jobs: int = 1
    cluster: str | None = None

    def run_options(self, progress: "Progress") -> "RunOptions":
        """Return the pipeline's options.

        Raises:
            RecipeError: the baseline is no report, or there are both processes and a cluster.
        """
        from qtool.pipeline.context import RunOptions
        from qtool.pipeline.search.spread.cluster import Spread

        return RunOptions(
            seed=self.seed,
            device=self.device.value,
            threads=self.threads,
            trust_code=self.trust_code,
            requantize=self.requantize,
            fresh=self.fresh,
            plan_file=self.plan,
            baseline=read_baseline(self.baseline),
            progress=progress,
            spread=Spread(self.jobs, self.cluster),
        )


@dataclass(frozen=True)
class Output:
    """Form of the output: the report as JSON, no progress, exit 1 for more than failed gates."""

    json: bool
    quiet: bool
    strict: bool = False


def quantize(command: Command, settings: Settings, output: Output) -> None:
    """Check the options, run the pipeline, print the report and exit; for ptq and qat.

    Args:
        command: recipe, model, data, run folder.
        settings: of the run.
        output: form of the output.
    """
    with exit_codes(output.json):
        sources = command.sources
        recipe = chosen_recipe(sources.recipe, sources.model, sources.data, command.settings)
        check_options(settings.device, settings.plan)
        request = command.folder.request(default_out(sources.recipe, sources.model))
        pipeline = importlib.import_module("qtool.pipeline.run")  # late: wrong options fail fast
        quiet = output.quiet or expected()[0] > 0  # of several processes one shows what happens
        with show_progress(quiet) as progress:
            run_options = settings.run_options(progress)
            with opened(request, command.function, recipe, run_options, quiet) as folder:
                report = getattr(pipeline, command.function)(recipe, folder, run_options)
        show(report, folder, output)


@contextmanager
def opened(
    request: "Request", command: str, recipe: "Recipe", run_options: "RunOptions", quiet: bool
) -> Iterator[Path]:
    """Yield the folder of a run; say on stderr where it is if the default one holds another run.

    Args:
        request: the folders that the user, or the command, names.
        command: name of the command, with options that its identity depends on.
        recipe: as it was read.
        run_options: of the run.
        quiet: say nothing.
    """
    from qtool.pipeline.folders.choice import chosen_folder
    from qtool.pipeline.folders.identity import run_identity

    with chosen_folder(request, run_identity(command, recipe, run_options)) as folder:
        if folder != (request.fixed or request.default) and not quiet:
            print(
                f"qtool: {request.default} holds another run, this one goes to {folder}; "
                "--overwrite replaces the other",
                file=sys.stderr,
            )
        yield folder


def read_baseline(run: Path | None) -> "Report | None":
    """Return the report of the run that ``--baseline`` names, or None."""
    from qtool.report.report import Report

    return None if run is None else Report.read(run)


def show(report: "Report | None", folder: Path | None, output: Output) -> None:
    """Print a report and exit with 0, or 1 where it did not pass.

    Args:
        report: None in the processes of torchrun but the first, which prints it.
        folder: the run folder, named in the text; None: nothing was written.
        output: form of the output.
    """
    if report is None:
        raise typer.Exit(PASSED)
    from qtool.cli.report import terminal_text

    print_result(report.to_json() if output.json else terminal_text(report, folder=folder))
    raise typer.Exit(exit_code(report, output.strict))


def chosen_recipe(
    recipe: Path | None,
    model: Path | None,
    data: Path | None,
    settings: Sequence["str | Override"],
) -> "Recipe":
    """Load the recipe file, or make a recipe from model and data with the defaults.

    Raises:
        RecipeError: neither a recipe nor both model and data, or the recipe is wrong.
    """
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
    """Return the default run folder: runs/<name of the recipe or the model>."""
    named = recipe if recipe is not None else model
    return Path("runs") / (named.stem if named is not None else "run")


def check_options(device: options.Device, plan: Path | None) -> None:
    """Raise RecipeError for options that would otherwise fail after minutes of work."""
    if plan is not None and not plan.is_file():
        raise RecipeError(f'--plan: no file "{plan}"; expected the plan.json of an earlier run')
    if device is options.Device.cuda:
        import torch

        if not torch.cuda.is_available():
            raise RecipeError(
                "--device: found cuda, but torch sees no CUDA device here; use --device cpu"
            )
