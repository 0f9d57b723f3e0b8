"""Measure the time of each layer in floats and in integers, and of conversions between them."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.annotation.layer_patterns import name_pattern
from qtool.graph.queries import by_name, is_constant, nodes_by_name, sample_elements
from qtool.graph.save import save_model
from qtool.pipeline.search.trial import TrialRunner, with_bits
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.search.integer_program import Conversion
from qtool.steps.context import Context
from qtool.verification.tasks import ProfileResult

RUNS = 20
# What the emitter writes in place of DequantizeLinear.
IN_PLACE = ("Cast", "Sub", "Mul")
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
    """Return milliseconds for each element that is converted to codes, and to floats.

    Layouts are converted where types are: kernels of codes keep channels last, float convolutions
    have a layout of their own.
    """
    integer, nodes = plan.integer_nodes, nodes_by_name(context.model.graph)
    counts, dequantized = {QUANTIZE: 0, DEQUANTIZE: 0}, set[str]()
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
            dequantized.add(name)
    times, elements = dict.fromkeys(counts, 0.0), max(1, sum(counts.values()))
    for kernel, operator in result.operators.items():
        milliseconds = result.milliseconds[kernel]
        if operator in (QUANTIZE, "ReorderOutput"):
            times[QUANTIZE] += milliseconds
        elif operator in (DEQUANTIZE, "ReorderInput") or (
            operator in IN_PLACE and kernel.rpartition("/")[0] in dequantized
        ):
            times[DEQUANTIZE] += milliseconds
        elif operator == "Transpose" and kernel not in nodes:
            for op in counts:
                times[op] += milliseconds * counts[op] / elements
    return {op: times[op] / counts[op] if counts[op] else 0.0 for op in counts}


def _conversions(
    context: Context, plan: QuantPlan, names: Sequence[str], rates: Mapping[str, float]
) -> list[Conversion]:
    """Return the pairs of layers of which one reads what the other makes, with their times.

    An addition between layers computes on codes only where the layers in front of it do and one
    behind it does: its readers read from all of these, each for its share of the conversion.
    """
    position = {name: k for k, name in enumerate(names)}
    makers = {plan.sites[name].output: name for name in names}
    pairs, values = [], by_name(context.model.graph)
    for name in names:
        for value in plan.sites[name].inputs:
            sources = _sources_of(values[value], plan, makers)
            for source in sources:
                size = sample_elements(values[value]) / len(sources)
                pairs.append(
                    Conversion(
                        position[makers[source]],
                        position[name],
                        to_codes={"latency": rates[QUANTIZE] * size},
                        to_floats={"latency": rates[DEQUANTIZE] * size},
                    )
                )
    return pairs


def _sources_of(
    value: ir.Value, plan: QuantPlan, makers: Collection[str], joined: bool = False
) -> list[str]:
    """Return the layers' outputs that a value is computed from on codes, through one join at most.

    Args:
        value: that a layer reads.
        plan: of the network in integers.
        makers: outputs of the layers.
        joined: an op with several operands was passed already.
    """
    if value.name in makers:
        return [value.name or ""]
    producer = value.producer()
    if producer is None or producer.name not in plan.integer_nodes:
        return []
    read = [v for v in producer.inputs if v is not None and not is_constant(v)]
    several = len(read) > 1
    if several and joined:
        return []
    parts = (_sources_of(v, plan, makers, several or joined) for v in read)
    return list(dict.fromkeys(source for sources in parts for source in sources))
