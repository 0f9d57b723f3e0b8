"""Spread a sensitivity scan over processes, in shares of consecutive sites.

Each process reads model and data itself, passes the sites in front of its share, and stores every
site that it finishes in the cache of the run folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qtool.errors import QtoolError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.folders.run_folder import open_cache
from qtool.pipeline.processes.worker import AssistingProcess
from qtool.pipeline.search.cluster import Spread, run_trials
from qtool.pipeline.search.reference import reference_of
from qtool.quant.plan_archive import load_plan_archive, save_plan_archive
from qtool.recipe.model import Recipe
from qtool.report.search_schema import Sensitivity
from qtool.runtime.memory import memory_limit
from qtool.search.sensitivity import STAGE, Scan
from qtool.steps.stage_cache import StageRecord

# Shares for each process, so that none waits long for the slowest.
SHARES = 2


@dataclass(frozen=True)
class ScanJob:
    """Input of every process that measures a share of a scan.

    Attributes:
        recipe: as the command read it.
        out: the run folder, absolute.
        plan: file of the calibrated plan.
        options: of the run, without progress.
        samples: calibration samples that outputs are compared on.
    """

    recipe: Recipe
    out: Path
    plan: Path
    options: RunOptions
    samples: int


def scan_in_shares(
    scan: Scan, job: ScanJob, spread: Spread, record: StageRecord
) -> list[Sensitivity]:
    """Measure the sites of a scan in several processes; return the rows of all in graph order.

    Args:
        scan: its cache is that of the job's run folder.
        job: what every process needs; its plan file is written.
        spread: the processes.
        record: of the running stage.

    Raises:
        QtoolError: model or data are not there what they are here, the cluster does not answer, or
            processes were lost several times.
    """
    context = scan.context
    if context.cache.fresh:
        scan.forget()
        context = replace(context, cache=replace(context.cache, fresh=False))
        scan = replace(scan, reference=replace(scan.reference, context=context))
    save_plan_archive(scan.plan, job.plan)
    order = {unit.name: k for k, unit in enumerate(scan.network.units)}
    count = len(scan.pending())

    def pending(processes: int) -> list[list[str]]:
        sites = scan.pending()
        # Behind site k lie all that follow it: early ones cost most.
        costs = [len(order) - order[name] for name in sites]
        return [[sites[k] for k in part] for part in equal_parts(costs, SHARES * processes)]

    for error in run_trials(spread, _measure, pending, job):
        if error is not None:
            raise error
        context.progress(STAGE, count - len(scan.pending()), count)
    rows = scan.run(StageRecord())
    record.notes.append(scan.extent_note(len(order) - count))
    return rows


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


def _measure(sites: Sequence[str], job: ScanJob) -> QtoolError | None:
    """Measure some sites in this process; return the error that is the user's."""
    import torch

    torch.set_num_threads(job.options.threads or 1)  # a process of a cluster has one for each core
    try:
        # Finished sites are those of this command: with --fresh it removed the earlier ones.
        cache = open_cache(job.out, replace(job.options, fresh=False))
        with memory_limit(job.recipe.memory):
            prepared = AssistingProcess(job.recipe, cache, job.options).prepared
            plan, _ = load_plan_archive(job.plan)
            scan = Scan(plan, reference_of(prepared, job.samples))
            scan.run(StageRecord(), sites)
    except QtoolError as error:
        return error
    return None
