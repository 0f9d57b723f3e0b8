"""The stages between reading a model and writing it, as functions of graphs and plans.

The pipeline times and remembers them; the Python API calls them as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qtool.annotate import Bits, annotate
from qtool.calibrate import choose_grids, collect, observed_values, weight_grids
from qtool.calibrators import MinMax
from qtool.errors import RecipeError, UnsupportedError
from qtool.graph import WEIGHTED_OPS
from qtool.load import infer_shapes
from qtool.patterns import nodes_matching
from qtool.plan import QuantPlan
from qtool.protocols import Calibrator
from qtool.recipe import Bits as BitsAsked
from qtool.rewrites import REWRITES
from qtool.targets import Target

Say = Callable[[tuple[str, ...], str], RecipeError]
"""Makes the error about one key of the recipe."""


def resolve_bits(asked: BitsAsked, model: ir.Model, error: Say) -> Bits:
    """Resolve the layer patterns on the graph as it was read; the last match wins.

    Raises:
        RecipeError: a pattern matches nothing, or the widths are not in this version.
    """
    everything = _is_float(("bits",), asked.weights, asked.activations, error)
    widths: dict[str, bool] = {}
    for pattern, layer in asked.layers.items():
        place = ("bits", "layers", pattern)
        try:
            names = nodes_matching(model, pattern)
        except RecipeError as found:
            raise error(place, str(found).removeprefix("bits.layers: ")) from found
        weights = asked.weights if layer.weights is None else layer.weights
        activations = asked.activations if layer.activations is None else layer.activations
        widths.update(dict.fromkeys(names, _is_float(place, weights, activations, error)))
    return Bits(
        granularity=asked.granularity,
        float_nodes=frozenset(
            node.name or "" for node in model.graph if widths.get(node.name or "", everything)
        ),
    )


def _is_float(place: tuple[str, ...], weights: object, activations: object, error: Say) -> bool:
    if (weights == "float") != (activations == "float"):
        raise error(
            place,
            f"weights: {weights} with activations: {activations} is not in this version; "
            "expected both 8 or both float",
        )
    return weights == "float"


def rewrite(
    model: ir.Model,
    names: Sequence[str],
    bits: Bits,
    folded: Callable[[], None] = lambda: None,
) -> list[str]:
    """Rewrite the graph in place.

    Args:
        model: the graph as it was read, its inputs' shapes bound.
        names: of rewrites, in order.
        bits: nodes that stay float are left as they are.
        folded: called once constants are folded and shapes are known.

    Returns:
        What applied, and how often.
    """
    notes = []
    for name in names:
        times = REWRITES[name](model, lambda node: node.name not in bits.float_nodes)
        if times:
            notes.append(f"{name}: {times} times")
        if name == "fold_constants":
            # Shapes that depended on computed constants are known only now.
            infer_shapes(model)
            folded()
    infer_shapes(model)
    return notes


def make_plan(model: ir.Model, target: Target, bits: Bits, name: str) -> QuantPlan:
    """The plan without grids.

    Args:
        model: the rewritten graph.
        target: what the runtime executes.
        bits: what is asked for.
        name: the model, for messages.

    Raises:
        UnsupportedError: there is nothing to quantize.
    """
    plan = annotate(model, target, bits)
    if not any(site.weight is not None for site in plan.sites.values()):
        left = [n.name or "" for n in model.graph if n.op_type in WEIGHTED_OPS]
        reasons = [f"{n}: {plan.floats[n]}" for n in left if n in plan.floats]
        reason = reasons[0] if reasons else "it has no Conv, Gemm or MatMul"
        raise UnsupportedError(
            f"model {name}: there is nothing to quantize: {reason}; "
            "Conv, Gemm and MatMul with constant float32 weights are quantized"
        )
    return plan


def make_grids(
    model: ir.Model,
    plan: QuantPlan,
    batches: Iterable[Mapping[str, np.ndarray]],
    calibrator: Calibrator,
    threads: int | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> QuantPlan:
    """Statistics of one pass over the calibration data, and the grids they give.

    Args:
        model: the rewritten graph.
        plan: without grids.
        batches: the data, by input name; as many rows at a time as fit in memory.
        calibrator: chooses the grids.
        threads: for ONNX Runtime.
        on_batch: told the rows of every batch.
    """
    # First, so that a weight that is not finite is named, and not the value it makes.
    plan = weight_grids(model, plan)
    stats = collect(
        model,
        observed_values(model, plan),
        batches,
        histograms=not isinstance(calibrator, MinMax),
        threads=threads,
        on_batch=on_batch,
    )
    return choose_grids(plan, stats, calibrator)
