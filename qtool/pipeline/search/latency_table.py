"""Measure the time of each layer in floats and in integers, and of conversions between them."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.annotation.layer_patterns import name_pattern
from qtool.graph.queries import by_name, nodes_by_name, sample_elements
from qtool.graph.save import save_model
from qtool.pipeline.search.trial import TrialRunner, with_bits
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.search.integer_program import Conversion
from qtool.steps.context import Context
from qtool.verification.tasks import ProfileResult

RUNS = 20
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class LatencyTable:
    """Times of one sample on one thread, in milliseconds.

    Attributes:
        float_ms, integer_ms: layer -> time.
        total_float, total_integer: of all kernels of the two files.
        conversions: between layers, by position, with ``latency`` amounts.
    """

    float_ms: Mapping[str, float]
    integer_ms: Mapping[str, float]
    total_float: float
    total_integer: float
    conversions: tuple[Conversion, ...]

    @property
    def rest(self) -> float:
        """Time of the integer file outside the layers of the table."""
        return max(0.0, self.total_integer - sum(self.integer_ms.values()))


def measure_latency(runner: TrialRunner, recipe: Recipe, names: Sequence[str]) -> LatencyTable:
    """Profile three files in the verifying process: float, integer, and every second layer float.

    Args:
        runner: of the search.
        recipe: all layers in integers.
        names: of the layers, in graph order.
    """
    plain = recipe.model_copy(update={"ptq": ()})
    plan, context = runner.quantized(plain)
    half = with_bits(plain, {name_pattern(name): "float" for name in names[1::2]})
    half_plan, half_context = runner.quantized(half)
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("float", "integer", "half")]
        # As it was read: every node has a name, which the user's file may lack.
        save_model(runner.prepared.loaded.model.clone(), files[0])
        runner.emitted(plan, context, files[1])
        runner.emitted(half_plan, half_context, files[2])
        in_float, in_codes, in_both = runner.profiled(files, RUNS)
    rates = _rates(in_both, half_plan, half_context)
    labels = {name: _labels(context, plan, name) for name in names}
    return LatencyTable(
        _by_layer(in_float, labels),
        _by_layer(in_codes, labels),
        sum(in_float.milliseconds.values()),
        sum(in_codes.milliseconds.values()),
        tuple(_conversions(context, plan, names, rates)),
    )


def _labels(context: Context, plan: QuantPlan, name: str) -> list[str]:
    """Return the names that kernels of a layer may have: of its node, and of what its nodes make.

    The runtime names a convolution of its own layout after the value, as in ``Relu_output_0_nchwc``
    for a Conv with its Relu.
    """
    nodes = nodes_by_name(context.model.graph)
    made = (v.name for each in plan.sites[name].nodes for v in nodes[each].outputs if v.name)
    return [name, *made]


def _by_layer(result: ProfileResult, labels: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Add up the kernels of each layer: those whose name begins with one of its labels.

    The longest label that fits counts: the runtime adds to names, and may fuse nodes.
    """
    times = dict.fromkeys(labels, 0.0)
    owners = {label: layer for layer, own in labels.items() for label in own}
    for kernel, milliseconds in result.milliseconds.items():
        fits = [
            label
            for label in owners
            if kernel == label or kernel.startswith((f"{label}_", f"{label}/"))
        ]
        if fits:
            times[owners[max(fits, key=len)]] += milliseconds
    return times


def _rates(result: ProfileResult, plan: QuantPlan, context: Context) -> dict[str, float]:
    """Return milliseconds for each element that is converted to codes, and to floats."""
    integer = plan.integer_nodes
    counts = {QUANTIZE: 0, DEQUANTIZE: 0}
    for name, value in by_name(context.model.graph).items():
        producer, users = value.producer(), [node for node, _ in value.uses()]
        if name not in plan.grid_of or value.is_initializer():
            continue
        in_codes = producer is not None and producer.name in integer
        if not in_codes and any(node.name in integer for node in users):
            counts[QUANTIZE] += sample_elements(value)
        in_floats = value.is_graph_output() or any(node.name not in integer for node in users)
        if in_codes and in_floats:
            counts[DEQUANTIZE] += sample_elements(value)
    times = dict.fromkeys(counts, 0.0)
    for kernel, operator in result.operators.items():
        if operator in times:
            times[operator] += result.milliseconds[kernel]
    return {op: times[op] / counts[op] if counts[op] else 0.0 for op in counts}


def _conversions(
    context: Context, plan: QuantPlan, names: Sequence[str], rates: Mapping[str, float]
) -> list[Conversion]:
    """Return the pairs of layers of which one reads what the other makes, with their times."""
    position = {name: k for k, name in enumerate(names)}
    makers = {plan.sites[name].output: name for name in names}
    pairs, values = [], by_name(context.model.graph)
    for name in names:
        for value in plan.sites[name].inputs:
            maker = makers.get(_source_of(context, plan, value))
            if maker is not None:
                size = sample_elements(values[value])
                pairs.append(
                    Conversion(
                        position[maker],
                        position[name],
                        to_codes={"latency": rates[QUANTIZE] * size},
                        to_floats={"latency": rates[DEQUANTIZE] * size},
                    )
                )
    return pairs


def _source_of(context: Context, plan: QuantPlan, name: str) -> str:
    """Return the value that a value's codes are moved from, which may be itself."""
    values = by_name(context.model.graph)
    while (producer := values[name].producer()) is not None:
        if producer.name not in plan.data_movement_ops:
            return name
        name = producer.inputs[0].name or "" if producer.inputs[0] is not None else name
    return name
