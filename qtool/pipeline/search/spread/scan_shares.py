"""Spread sensitivity scans over processes, in shares of consecutive sites.

Each process reads model and data itself, once for all its shares, passes the sites in front of a
share, and stores every site that it finishes in the cache of the run folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np

from qtool.errors import QtoolError, RecipeError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.processes.worker import AssistingProcess
from qtool.pipeline.search.reference import reference_of
from qtool.pipeline.search.spread.cluster import Spread, held, run_trials
from qtool.quant.plan_archive import load_plan_archive
from qtool.recipe.model import Recipe
from qtool.runtime.memory import memory_limit
from qtool.runtime.torch_threads import torch_threads
from qtool.search.auto import OutOfTimeError
from qtool.search.sensitivity import STAGE, Scan
from qtool.steps.stage_cache import StageCache, source_digest
from qtool.verification.environment import environment

Made = TypeVar("Made")

# Shares for each process, so that none waits long for the slowest.
SHARES = 2
# What ends a share without being a bug; the first process raises it.
Failure = QtoolError | OutOfTimeError


@dataclass(frozen=True)
class WorkerInput:
    """Input of a process that reads model and data itself, and stores what it finishes.

    Attributes:
        recipe: as the command read it, or without what a search chooses.
        cache: of the run folder; its path is absolute, processes of a cluster have other folders.
        options: of the run, without progress.
        name: of this use of the processes.
    """

    recipe: Recipe
    cache: StageCache
    options: RunOptions
    name: str = field(default_factory=lambda: uuid4().hex)

    @classmethod
    def of(cls, recipe: Recipe, cache: StageCache, options: RunOptions) -> "WorkerInput":
        """Return the input of the processes of a command.

        Args:
            recipe: see the attribute.
            cache: of this process.
            options: of this process.
        """
        absolute = StageCache(cache.folder.absolute(), base=cache.base)
        return cls(recipe, absolute, options.of_worker())

    def once(self, make: Callable[[], Made]) -> Made:
        """Return what this process reads for this input; it is made with the first share.

        Args:
            make: reads model and data.
        """
        return held(self.name, make)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Compute with the threads and below the memory of the run, until the block ends.

        Raises:
            RecipeError: this process has another version of qtool or of a library, or another
                processor, and may compute other results.
        """
        own = {
            "version of qtool": source_digest(),
            "processor or version of a library": str(environment()),
        }
        for (what, here), first in zip(own.items(), self.cache.base, strict=False):
            if here != first:
                raise RecipeError(
                    f"a process of the cluster has another {what}; use machines of one kind with "
                    "the same versions, and start its workers again"
                )
        with torch_threads(self.options.threads or 1), memory_limit(self.recipe.memory):
            yield


class ScanInput(ABC):
    """Input of the processes that measure shares of one scan.

    Attributes:
        common: input that does not depend on the scan.
    """

    common: WorkerInput

    @abstractmethod
    def scan(self) -> Scan:
        """Return the scan as this process makes it: the same sites, samples and cache."""


@dataclass(frozen=True)
class RecipeScan(ScanInput):
    """The scan of the plan of the recipe itself.

    Attributes:
        common: see :class:`ScanInput`.
        plan: file of the calibrated plan.
        samples: calibration samples that outputs are compared on.
    """

    common: WorkerInput
    plan: Path
    samples: int

    def scan(self) -> Scan:
        """Return the scan, on the graph that the recipe rewrites."""
        return self.common.once(self._read)

    def _read(self) -> Scan:
        common = self.common
        prepared = AssistingProcess(common.recipe, common.cache, common.options).prepared
        plan, _ = load_plan_archive(self.plan)
        return Scan(plan, reference_of(prepared, self.samples))


def scan_in_shares(scans: Sequence[tuple[Scan, ScanInput]], spread: Spread) -> None:
    """Measure the sites of scans in several processes, which store them in the cache.

    Args:
        scans: each with what other processes make it from; they have one context's cache.
        spread: the processes.

    Raises:
        QtoolError: model or data are not there what they are here, the cluster does not answer, or
            processes were lost several times.
        OutOfTimeError: the time of a search is over.
    """

    def left() -> int:
        return sum(len(scan.pending()) for scan, _ in scans)

    def pending(processes: int) -> list[tuple[ScanInput, list[str]]]:
        shares: list[tuple[ScanInput, list[str]]] = []
        unfinished = [(scan, source, sites) for scan, source in scans if (sites := scan.pending())]
        for scan, source, sites in unfinished:
            order = {unit.name: k for k, unit in enumerate(scan.network.units)}
            # Behind site k lie all that follow it: early ones cost most.
            costs = [len(order) - order[name] for name in sites]
            parts = equal_parts(costs, ceil(SHARES * processes / len(unfinished)))
            shares += [(source, [sites[k] for k in part]) for part in parts]
        return shares

    if not (count := left()):
        return
    for error in run_trials(spread, _measure, pending):
        if error is not None:
            raise error
        scans[0][0].context.progress(STAGE, count - left(), count)


def equal_parts(costs: Sequence[float], count: int) -> list[list[int]]:
    """Return positions in consecutive parts of about the same cost; empty parts are left out.

    Args:
        costs: by position, positive.
        count: of the parts.
    """
    total = np.cumsum(costs)
    middles = total - np.asarray(costs) / 2
    parts = np.floor(middles / max(total[-1:], default=1) * count).astype(int)
    return [np.flatnonzero(parts == k).tolist() for k in range(count) if k in parts]


def _measure(share: tuple[ScanInput, Sequence[str]]) -> Failure | None:
    """Measure some sites of a scan in this process; return the error that is the user's."""
    source, sites = share
    try:
        with source.common.working():
            source.scan().run(sites)
    except (QtoolError, OutOfTimeError) as error:
        return error
    return None
