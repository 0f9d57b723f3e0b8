"""Plan a recipe without calibrating, for ``qtool check``."""

from dataclasses import dataclass

import onnx_ir as ir

from qtool.pipeline.annotate_stage import annotated
from qtool.pipeline.calibration.grids import data_notes
from qtool.pipeline.context import RunOptions
from qtool.pipeline.estimate.memory import check_memory
from qtool.pipeline.estimate.run_time import Estimate, estimate_run
from qtool.pipeline.latency.needs import require_runtimes
from qtool.pipeline.prepare import prepare
from qtool.pipeline.run import rewritten
from qtool.pipeline.search.requested import requested_search
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.steps.stage_cache import temporary_cache


@dataclass(frozen=True)
class CheckResult:
    """Plan and estimate that ``qtool check`` prints.

    Attributes:
        rows: (node, bits, reason) in graph order.
        estimate: of the run's time and memory and of its file.
        notes: of the stages before calibration, and on the calibration samples.
        search: that comes before all this, in words; None where the recipe asks for none.
    """

    rows: tuple[tuple[str, str, str], ...]
    estimate: Estimate
    notes: tuple[str, ...]
    search: str | None = None


def _float_row(plan: QuantPlan, node: ir.Node) -> tuple[str, str]:
    """Return bits and reason of a node that computes in floats; its weights may be codes."""
    reason = f"{node.op_type}: {plan.float_nodes[node.name or '']}"
    names = [v.name or "" for v in node.inputs if v is not None and v.name in plan.weight_only]
    spec = plan.spec(names[0]) if names else None
    if spec is None:
        return "float", reason
    return f"W{spec.bits}", f"{reason}; weights are codes, one scale per {spec.granularity.name}"


def _width(plan: QuantPlan, value: str) -> int | str:
    """Return the bits of a value, or "float"."""
    spec = plan.spec(value)
    return "float" if spec is None else spec.bits


def check(recipe: Recipe, options: RunOptions | None = None) -> CheckResult:
    """Prepare a run and make its plan, without calibrating.

    Args:
        recipe: paths are absolute.
        options: trust_code, requantize and progress are used; None: the defaults.

    Raises:
        QtoolError: for every error that a run would find before it calibrates.
    """
    require_runtimes(recipe)
    request = requested_search(recipe)
    with temporary_cache() as cache:
        prepared = prepare(request.recipe, cache, options or RunOptions())
        rewritten(prepared)
        plan = annotated(prepared.context)
        check_memory(prepared, plan)
        estimate = estimate_run(prepared, plan)
        notes = data_notes(prepared.recipe, prepared.context, plan)
    model = prepared.context.model
    rows = [(node.name or "", *row) for node in model.graph if (row := _row(plan, node))]
    notes = [*(note for stage in cache.done for note in stage.notes), *notes]
    return CheckResult(tuple(rows), estimate, tuple(notes), request.words)


def _row(plan: QuantPlan, node: ir.Node) -> tuple[str, str] | None:
    """Return bits and reason of a node; None where it neither computes nor moves values."""
    name = node.name or ""
    if name in plan.sites:
        site = plan.sites[name]
        weight = plan.spec(site.weight or "")
        bits = f"{f'W{weight.bits}' if weight else ''}A{_width(plan, site.inputs[0])}"
        fused = f" with {', '.join(site.nodes[1:])}" if site.nodes[1:] else ""
        return bits, f"{site.op}{fused}: integer kernel"
    if name in plan.data_movement_ops:
        width = _width(plan, (node.inputs[0].name if node.inputs[0] else "") or "")
        return f"A{width}", f"{node.op_type}: moves codes, shares its input's grid"
    if name in plan.dynamic:
        weight = plan.spec(plan.dynamic[name].weights[0])
        bits = f"W{weight.bits if weight else 8}Adynamic"
        return bits, f"{node.op_type}: integer kernel that computes its input's grid at run time"
    if name in plan.float_nodes:
        return _float_row(plan, node)
    return None
