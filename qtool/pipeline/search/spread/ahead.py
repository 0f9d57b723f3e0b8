"""Do in other processes what a search does next: scans, and trials that depend on no other one.

Finished sites and trials lie in the cache of the run folder. The search itself runs as it does in
one process and reads them there; so it chooses the same, and goes on from them after a kill.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qtool.errors import QtoolError
from qtool.pipeline.search.spread.cluster import run_trials
from qtool.pipeline.search.spread.scan_shares import (
    Failure,
    ScanInput,
    WorkerInput,
    scan_in_shares,
)
from qtool.pipeline.search.trial import TrialRunner
from qtool.quant.plan_archive import load_plan_archive, save_plan_archive
from qtool.recipe.model import Recipe
from qtool.search.auto import Deadline, OutOfTimeError
from qtool.search.sensitivity import Scan

STAGE = "search: trials"


@dataclass(frozen=True)
class SearchInput(WorkerInput):
    """Input of the processes of a search.

    Attributes:
        folder: for the files of trials, absolute; the first process measures their times.
        until: when the time of the search is over, as of ``time.time``.
    """

    folder: Path = Path()
    until: float = math.inf

    @classmethod
    def of_search(cls, runner: TrialRunner) -> "SearchInput":
        """Return the input of the processes that work for a runner.

        Args:
            runner: of this process.
        """
        options = runner.prepared.options
        common = WorkerInput.of(runner.source, runner.prepared.context.cache, options)
        progress, until = options.progress, math.inf
        if isinstance(progress, Deadline):
            until = time.time() + progress.until - time.perf_counter()
        folder = runner.folder.absolute()
        return cls(**vars(common), folder=folder, until=until)

    def runner(self) -> TrialRunner:
        """Return the runner of this process, which reads model and data the first time."""
        runner, deadline = self.once(self._read)
        deadline.until = time.perf_counter() + self.until - time.time()
        return runner

    def _read(self) -> tuple[TrialRunner, Deadline]:
        deadline = Deadline()
        options = replace(self.options, progress=deadline)
        return TrialRunner.of(self.recipe, self.cache, options, self.folder), deadline


@dataclass(frozen=True)
class SearchScan(ScanInput):
    """The scan of a plan that a search made.

    Attributes:
        common: see :class:`ScanInput`.
        recipe: whose graph the plan belongs to.
        plan: file of the plan.
        samples: that the scan reads.
    """

    common: SearchInput
    recipe: Recipe
    plan: Path
    samples: int

    def scan(self) -> Scan:
        """Return the scan, on the graph that its recipe rewrites."""
        runner = self.common.runner()
        plan, _ = load_plan_archive(self.plan)
        return runner.scan(plan, runner.graph(self.recipe), self.samples)


def scan_ahead(runner: TrialRunner, recipe: Recipe, scans: Sequence[Scan]) -> None:
    """Measure the sites of scans in the processes of the run, where it has several.

    Args:
        runner: of the search.
        recipe: whose graph the plans of the scans belong to.
        scans: of :meth:`TrialRunner.scan`.

    Raises:
        QtoolError: see :func:`scan_in_shares`.
    """
    spread = runner.prepared.options.spread
    if not spread.several:
        return
    common = SearchInput.of_search(runner)
    pairs: list[tuple[Scan, ScanInput]] = []
    for k, scan in enumerate(scans):
        plan = common.folder / f"scanned-{k}.zip"
        save_plan_archive(scan.plan, plan)
        pairs.append((scan, SearchScan(common, recipe, plan, scan.reference.dataset.count)))
    scan_in_shares(pairs, spread)


def try_ahead(runner: TrialRunner, recipes: Sequence[Recipe]) -> None:
    """Try recipes in the processes of the run, where it has several; a single one is left alone.

    Their times are left to the first process, which measures them one after the other.

    Args:
        runner: of the search.
        recipes: that the search tries in any case.

    Raises:
        QtoolError: a recipe cannot be tried, or see :func:`scan_in_shares`.
    """
    spread = runner.prepared.options.spread
    if not spread.several:
        return
    different = {runner.key(recipe): recipe for recipe in recipes}

    def pending(processes: int) -> list[Recipe]:
        return [recipe for recipe in different.values() if not runner.is_finished(recipe)]

    if (count := len(pending(1))) < 2:
        return
    context = runner.prepared.context
    common = SearchInput.of_search(runner)
    for error in run_trials(spread, _try, pending, common):
        if error is not None:
            raise error
        context.progress(STAGE, count - len(pending(1)), count)


def _try(recipe: Recipe, common: SearchInput) -> Failure | None:
    """Try a recipe in this process; return the error that is the user's."""
    try:
        with common.working():
            common.runner().compare(recipe)
    except (QtoolError, OutOfTimeError) as error:
        return error
    return None
