"""Measure the sensitivity of every site, for ``qtool sensitivity``."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qtool.pipeline.build_report import output_part
from qtool.pipeline.context import Prepared, RunOptions
from qtool.pipeline.estimate.memory import check_memory, gradient_part
from qtool.pipeline.folders.run_folder import run_folder, write_run
from qtool.pipeline.prepare import prepare
from qtool.pipeline.run import rewritten
from qtool.pipeline.search.reference import check_real_samples, reference_of
from qtool.pipeline.search.requested import refuse_search
from qtool.pipeline.search.spread.scan_shares import RecipeScan, WorkerInput, scan_in_shares
from qtool.pipeline.stages import Emitted, freeze_and_emit, quantize
from qtool.pipeline.training.checks import check_rewrites
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import save_plan_archive
from qtool.recipe.model import Recipe
from qtool.report.report import Report
from qtool.report.schema import Data, DataPart, ModelPart
from qtool.report.search_schema import Sensitivity
from qtool.report.verdict import with_verdict
from qtool.runtime.memory import memory_limit
from qtool.verification.environment import environment
from qtool.verification.file_size import file_bytes, file_parts, size_part
from qtool.verification.layers.table import layers_part
from qtool.version import __version__

# Calibration samples of the gradient-based estimates, and sites that are measured two by two.
GRADIENT_SAMPLES = 16
WORST = 4


@dataclass(frozen=True)
class SensitivityOptions:
    """Extent of the measurement.

    Attributes:
        samples: calibration samples that every network is run on.
        worst: sites whose pairs are measured.
    """

    samples: int = 64
    worst: int = WORST


def run_sensitivity(
    recipe: Recipe,
    out: Path,
    options: RunOptions | None = None,
    extent: SensitivityOptions | None = None,
) -> Report:
    """Measure what each site of the quantized network costs, and write the run folder.

    Args:
        recipe: what to quantize; its evaluation samples are not read.
        out: the run folder; finished sites are stored there.
        options: of the run; None: the defaults.
        extent: of the measurement; None: the defaults.

    Raises:
        QtoolError: anything that is the user's to fix; then nothing was written.
    """
    options, extent = options or RunOptions(), extent or SensitivityOptions()
    refuse_search(recipe)
    options, original = options.for_spread(), recipe
    check_rewrites(recipe, train=False)
    with (
        options.computing(),
        memory_limit(recipe.memory),
        run_folder(out, options) as (cache, scratch),
    ):
        prepared = prepare(recipe, cache, options)
        check_real_samples(prepared)
        recipe, context = prepared.recipe, prepared.context
        model = rewritten(prepared)
        gradients = gradient_part(prepared, min(GRADIENT_SAMPLES, extent.samples))
        check = partial(check_memory, prepared, more=(gradients,))
        plan = quantize(recipe, context, options.plan_file, on_plan=check).plan
        common = WorkerInput.of(original, cache, options)
        job = RecipeScan(common, scratch.absolute() / "plan.zip", extent.samples)
        rows = measure(prepared, plan, extent, job)
        emitted = freeze_and_emit(recipe, context, plan, scratch / recipe.output.file)
        report = _report(prepared, model, emitted, rows)
        write_run(recipe, emitted, report, out)
    return report


def measure(
    prepared: Prepared, plan: QuantPlan, extent: SensitivityOptions, job: RecipeScan
) -> list[Sensitivity]:
    """Return the costs of all sites, of the whole, of op types, and of pairs of the worst sites.

    Args:
        prepared: model and data.
        plan: every grid is calibrated.
        extent: of the measurement.
        job: for other processes, where the options name some; its plan file is written then.
    """
    from qtool.search.gradients import fisher_estimates, hessian_estimates
    from qtool.search.interactions import interactions
    from qtool.search.rank_agreement import rank_agreement
    from qtool.search.sensitivity import Scan

    context, spread = prepared.context, prepared.options.spread
    reference = reference_of(prepared, extent.samples)
    with context.cache.stage("sensitivity") as record:
        scan = Scan(plan, reference)
        record.notes.append(scan.extent_note())
        if spread.several:
            save_plan_archive(plan, job.plan)
            scan_in_shares([(scan, job)], spread)
        rows = scan.run()
        few = reference.dataset.take(range(min(GRADIENT_SAMPLES, reference.dataset.count)))
        fisher = scan.estimates("fisher", few, lambda: fisher_estimates(context, plan, few))
        hessian = scan.estimates("hessian", few, lambda: hessian_estimates(context, plan, few))
        rows = [_with_estimates(row, fisher, hessian) for row in rows]
        record.notes += rank_agreement(rows)
        return [*rows, *scan.whole(rows), *interactions(scan, rows, extent.worst)]


def _with_estimates(
    row: Sensitivity, fisher: Mapping[str, float], hessian: Mapping[str, float]
) -> Sensitivity:
    """Return the row of a site with the estimates of its cost from gradients."""
    if row.kind != "both":
        return row
    estimates = {"fisher": fisher.get(row.site), "hessian": hessian.get(row.site)}
    return Sensitivity.model_validate({**row.model_dump(), **estimates})


def _report(
    prepared: Prepared, model: ModelPart, emitted: Emitted, rows: list[Sensitivity]
) -> Report:
    loaded, context = prepared.loaded, prepared.context
    whole, layers = file_parts(emitted.model)
    before = loaded.size or file_bytes(loaded.path)
    calibration = context.calibration
    report = Report(
        qtool=__version__,
        command="sensitivity",
        seed=context.seed,
        passed=True,
        model=model,
        output=output_part(prepared, emitted),
        data=Data(calibration=DataPart(count=calibration.count, sha256=calibration.digest)),
        size=size_part(before, emitted.path, loaded.model, emitted.plan, whole),
        layers=layers_part(loaded.model, emitted.plan, {}, layers),
        sensitivity=rows,
        stages=context.cache.done,
        environment=environment(),
    )
    return with_verdict(report)
