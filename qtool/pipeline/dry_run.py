"""Plan a recipe without calibrating, for ``qtool check``."""

from dataclasses import dataclass

import onnx_ir as ir

from qtool.calibration.collect import batch_size, observed_values
from qtool.graph.queries import macs
from qtool.pipeline.annotate_stage import annotated
from qtool.pipeline.context import Prepared, RunOptions
from qtool.pipeline.prepare import prepare
from qtool.pipeline.run import rewritten
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.steps.stage_cache import temporary_cache


@dataclass(frozen=True)
class CheckResult:
    """Plan and estimate that ``qtool check`` prints.

    Attributes:
        rows: (node, bits, reason) in graph order.
        seconds: rough estimate of the time of the whole run.
        bytes: rough estimate of its peak memory.
    """

    rows: tuple[tuple[str, str, str], ...]
    seconds: float
    bytes: int


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


# Float multiply-accumulates per second that a small convolution reaches on one core; for the
# estimate only.
MACS_PER_SECOND = 2e10


def check(recipe: Recipe, options: RunOptions | None = None) -> CheckResult:
    """Prepare a run and make its plan, without calibrating.

    Args:
        recipe: paths are absolute.
        options: trust_code, requantize and progress are used; None: the defaults.

    Raises:
        QtoolError: for every error that a run would find before it calibrates.
    """
    with temporary_cache() as cache:
        prepared = prepare(recipe, cache, options or RunOptions())
        rewritten(prepared)
        plan = annotated(prepared.context)
    model = prepared.context.model
    rows = [(node.name or "", *row) for node in model.graph if (row := _row(plan, node))]
    return CheckResult(tuple(rows), *_estimate(prepared, plan))


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


def _estimate(prepared: Prepared, plan: QuantPlan) -> tuple[float, int]:
    """Return rough seconds and bytes of memory for the whole run."""
    context = prepared.context
    model, calibration = context.model, context.calibration.count
    each = sum(macs(node) for node in model.graph)
    passes = calibration + 4 * prepared.evaluation.dataset.count
    weights = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    rows = batch_size(model, observed_values(model, plan), calibration)
    seconds = 6 + passes * (each / MACS_PER_SECOND + 5e-4)
    return seconds, 450_000_000 + 6 * weights + rows * each // 100
