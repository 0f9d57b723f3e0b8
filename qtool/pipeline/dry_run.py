"""What a recipe would do, without calibrating: for ``qtool check``."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.calibration.collect import batch_size, observed_values
from qtool.graph.queries import macs
from qtool.pipeline.prepare import prepare
from qtool.pipeline.run import make_annotated, rewritten
from qtool.progress import Progress, silent
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.recipe.target_defaults import apply_target_defaults
from qtool.steps.stage_cache import Stages
from qtool.targets.loader import load_target


@dataclass(frozen=True)
class CheckResult:
    """What ``qtool check`` prints.

    Attributes:
        rows: (value, bits, why) in graph order.
        seconds, bytes: a rough estimate for the whole run.
    """

    rows: tuple[tuple[str, str, str], ...]
    seconds: float
    bytes: int


def _float_row(plan: QuantPlan, node: ir.Node) -> tuple[str, str]:
    """Bits and reason of a node that computes in floats; its weights may be kept as codes."""
    why = f"{node.op_type}: {plan.float_nodes[node.name or '']}"
    names = [v.name or "" for v in node.inputs if v is not None and v.name in plan.weight_only]
    spec = plan.spec(names[0]) if names else None
    if spec is None:
        return "float", why
    return f"W{spec.bits}", f"{why}; weights are codes, one scale per {spec.granularity.name}"


def _width(plan: QuantPlan, value: str) -> int | str:
    spec = plan.spec(value)
    return "float" if spec is None else spec.bits


# Float multiply-accumulates a second and core that a small convolution reaches; for estimates only.
MACS_PER_SECOND = 2e10


def check(
    recipe: Recipe,
    progress: Progress = silent,
    *,
    trust_code: bool = False,
    requantize: bool = False,
) -> CheckResult:
    """Read recipe, model and one sample, and make the plan; calibrate nothing.

    Args:
        recipe: what to do, paths absolute.
        progress: told about every stage.
        trust_code: whether the recipe may run code of its own.
        requantize: whether a quantized ONNX file is turned back to floats first.

    Raises:
        QtoolError: as a run would.
    """
    recipe = apply_target_defaults(recipe, load_target(recipe.target))
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(Path(folder), True, ())
        prepared = prepare(recipe, stages, 0, progress, trust_code, requantize)
    rewritten(recipe, prepared, stages)
    plan = make_annotated(prepared, stages)
    model = prepared.loaded.model
    rows = []
    for node in model.graph:
        name = node.name or ""
        if name in plan.sites:
            site = plan.sites[name]
            weight = plan.spec(site.weight or "")
            bits = f"{f'W{weight.bits}' if weight else ''}A{_width(plan, site.inputs[0])}"
            fused = f" with {', '.join(site.nodes[1:])}" if site.nodes[1:] else ""
            rows.append((name, bits, f"{site.op}{fused}: integer kernel"))
        elif name in plan.data_movement_ops:
            width = _width(plan, (node.inputs[0].name if node.inputs[0] else "") or "")
            rows.append(
                (name, f"A{width}", f"{node.op_type}: moves codes, shares its input's grid")
            )
        elif name in plan.dynamic:
            weight = plan.spec(plan.dynamic[name].weights[0])
            bits = f"W{weight.bits if weight else 8}Adynamic"
            rows.append((name, bits, f"{node.op_type}: integer kernel that finds its input's grid"))
        elif name in plan.float_nodes:
            rows.append((name, *_float_row(plan, node)))
    each = sum(macs(node) for node in model.graph)
    passes = prepared.calibration.count + 4 * prepared.judged.count
    weights = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    names = observed_values(model, plan)
    held = batch_size(model, names, prepared.calibration.count) * each // 100
    return CheckResult(
        tuple(rows), 6 + passes * (each / MACS_PER_SECOND + 5e-4), 450_000_000 + 6 * weights + held
    )
