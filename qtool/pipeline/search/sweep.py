"""Run a recipe with several values of some keys, in processes of this machine or of a cluster."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import yaml

from qtool.errors import QtoolError, RecipeError
from qtool.files import digest_of, write_text_atomic
from qtool.loading import read_graph
from qtool.pipeline.context import RunOptions
from qtool.pipeline.folders.identity import modules
from qtool.pipeline.run import run_ptq
from qtool.pipeline.search.spread.cluster import run_trials
from qtool.recipe.loader import load_recipe
from qtool.recipe.validation import named_files
from qtool.report.report import Report
from qtool.steps.stage_cache import source_digest

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


@dataclass(frozen=True)
class Run:
    """One variant and where it goes.

    Attributes:
        recipe: the YAML file.
        variant: of the recipe.
        folder: of the run.
        key: digest of all that decides the outcome.
    """

    recipe: Path
    variant: Variant
    folder: Path
    key: str

    @property
    def finished(self) -> bool:
        """True where the folder holds a run of the same recipe, files, options and version."""
        file = self.folder / KEY_FILE
        return file.is_file() and file.read_text() == self.key


class FileDigests:
    """Digests of what files and folders hold; each is read once."""

    def __init__(self) -> None:
        self._digests: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """Return the digest of a file, with the external data of a model, or of a folder.

        Args:
            path: exists; of a folder the names count too.
        """
        if path not in self._digests:
            self._digests[path] = self._read(path)
        return self._digests[path]

    def _read(self, path: Path) -> str:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            names = "\n".join(str(each.relative_to(path)) for each in files)
            return hashlib.sha256(
                f"{names}\n{digest_of(files) if files else ''}".encode()
            ).hexdigest()
        return digest_of(read_graph(path)[1] if path.suffix == ".onnx" else [path])


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
    recipe: Path, variants: Sequence[Variant], out: Path, options: RunOptions
) -> dict[str, Report]:
    """Run all variants, each in its own folder; finished ones are not run again.

    The results do not depend on the number of processes: each run has the same threads.

    Args:
        recipe: the YAML file.
        variants: of the recipe.
        out: folder of the run folders.
        options: of every run, without threads each has one; and the processes of the sweep.

    Returns:
        The report of each variant, by name.

    Raises:
        QtoolError: a variant is wrong or the cluster does not answer (before any of them runs), or
            a variant failed (after all others).
    """
    recipe, out = recipe.absolute(), out.absolute()  # processes of a cluster have other folders
    options = options.for_spread()
    plain = replace(options.of_worker(), threads=options.threads or 1)
    digests = FileDigests()
    runs = {
        variant.name: Run(
            recipe, variant, out / variant.name, _key(recipe, variant, plain, digests)
        )
        for variant in variants
    }
    failures: dict[str, QtoolError] = {}

    def pending(processes: int) -> list[Run]:
        return [run for name, run in runs.items() if not run.finished and name not in failures]

    count = len(pending(1))
    for done, (name, error) in enumerate(run_trials(options.spread, _run, pending, plain), 1):
        options.progress("sweep", done, count)
        if error is not None:
            failures[name] = error
    for name, failure in failures.items():
        raise type(failure)(f"{name}: {failure}") from failure
    return {variant.name: Report.read(out / variant.name) for variant in variants}


def _run(run: Run, options: RunOptions) -> tuple[str, QtoolError | None]:
    """Run one variant in this process; return its name, and the error that is the user's."""
    try:
        run_ptq(load_recipe(run.recipe, run.variant.settings), run.folder, options)
    except QtoolError as error:
        return run.variant.name, error
    write_text_atomic(run.folder / KEY_FILE, run.key)
    return run.variant.name, None


def _key(recipe: Path, variant: Variant, options: RunOptions, digests: FileDigests) -> str:
    """Return the digest of all that decides the outcome of a run."""
    loaded = load_recipe(recipe, variant.settings)
    contents = []
    for key, file in named_files(loaded):
        if key[0] == "qat":  # a sweep does not train
            continue
        state = "\n".join(modules(Path(file))) if key[-1] == "code" else digests.of(Path(file))
        contents.append(f"{'.'.join(map(str, key))} {state}")
    settings = (str(options.seed), str(options.threads), options.device)
    parts = (loaded.model_dump_json(), *contents, source_digest(), *settings)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
