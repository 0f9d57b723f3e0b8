"""Run a recipe with several values of some keys, in processes of this machine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import yaml

from qtool.errors import QtoolError, RecipeError
from qtool.files import write_text_atomic
from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.progress import silent
from qtool.recipe.loader import load_recipe
from qtool.report.report import Report
from qtool.steps.stage_cache import source_digest

# Runs whose process was lost are started again so often.
ATTEMPTS = 3
KEY_FILE = ".sweep"


@dataclass(frozen=True)
class Variant:
    """One run of a sweep.

    Attributes:
        name: of its folder, such as ``bits.weights=4``.
        settings: ``key=value`` as for ``--set``.
    """

    name: str
    settings: tuple[str, ...]


def variants_of(over: Sequence[str]) -> list[Variant]:
    """Return all combinations of the values of some keys.

    Args:
        over: ``KEY=A,B``, values in YAML.

    Raises:
        RecipeError: no key, no value, or the same one twice.
    """
    axes = []
    for text in over:
        key, _, listed = text.partition("=")
        try:
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            values = None
        if not key or not values:
            raise RecipeError(f"--over {text}: expected KEY=A,B, such as bits.weights=8,6,4")
        axes.append([f"{key}={_in_one_line(value)}" for value in values])
    variants = [
        Variant(",".join(one.replace("/", "_") for one in settings), settings)
        for settings in product(*axes)
    ]
    names = [variant.name for variant in variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"--over: two runs would be named {twice[0]}; give different values")
    return variants


def _in_one_line(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.split("\n")[0]


def run_sweep(
    recipe: Path, variants: Sequence[Variant], out: Path, options: RunOptions, jobs: int
) -> dict[str, Report]:
    """Run all variants, each in its own folder; finished ones are not run again.

    The results do not depend on the number of processes: each run has the same threads.

    Args:
        recipe: the YAML file.
        variants: of the recipe.
        out: folder of the run folders.
        options: of every run; without threads each has one.
        jobs: processes at a time.

    Returns:
        The report of each variant, by name.

    Raises:
        QtoolError: a variant is wrong (before any of them runs), or failed (after all others).
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    for variant in variants:
        load_recipe(recipe, variant.settings)
    plain = replace(options, threads=options.threads or 1, progress=silent)
    failures: dict[str, QtoolError] = {}
    for attempt in range(1, ATTEMPTS + 1):
        pending = [v for v in variants if not _finished(recipe, v, out / v.name, plain)]
        pending = [v for v in pending if v.name not in failures]
        try:
            work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
                delayed(_run)(recipe, variant, out / variant.name, plain) for variant in pending
            )
            for done, (name, error) in enumerate(work, 1):
                options.progress("sweep", done, len(pending))
                if error is not None:
                    failures[name] = error
            break
        except TerminatedWorkerError as error:
            if attempt == ATTEMPTS:
                raise RecipeError(
                    f"sweep: a process was lost {ATTEMPTS} times ({error}); give fewer --jobs, if "
                    "memory ran out"
                ) from error
    for name, failure in failures.items():
        raise type(failure)(f"{name}: {failure}") from failure
    return {variant.name: Report.read(out / variant.name) for variant in variants}


def _run(
    recipe: Path, variant: Variant, folder: Path, options: RunOptions
) -> tuple[str, QtoolError | None]:
    """Run one variant in this process; return its name, and the error that is the user's."""
    try:
        run_ptq(load_recipe(recipe, variant.settings), folder, options)
    except QtoolError as error:
        return variant.name, error
    write_text_atomic(folder / KEY_FILE, _key(recipe, variant, options))
    return variant.name, None


def _finished(recipe: Path, variant: Variant, folder: Path, options: RunOptions) -> bool:
    """Return whether the folder holds a run of the same recipe, options and version."""
    file = folder / KEY_FILE
    return file.is_file() and file.read_text() == _key(recipe, variant, options)


def _key(recipe: Path, variant: Variant, options: RunOptions) -> str:
    text = load_recipe(recipe, variant.settings).model_dump_json()
    parts = (text, source_digest(), str(options.seed), str(options.threads), options.device)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
