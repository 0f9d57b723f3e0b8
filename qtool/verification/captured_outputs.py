"""What parity looks at in the emitted file: a copy that also returns its codes."""

from collections.abc import Iterable

import onnx_ir as ir

from qtool.graph.queries import by_name, macs
from qtool.quant.plan import QuantPlan

# Multiply-accumulates that parity and layer noise may cost: a few seconds on one core.
MACS = 1_000_000_000
MOST_SAMPLES = 64

INTEGERS = {ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16}


def sample_count(model: ir.Model, available: int) -> int:
    """How many samples parity can afford."""
    each = sum(macs(node) for node in model.graph) or 1
    return int(min(max(MACS // each, 2), MOST_SAMPLES, available))


def capturable_values(emitted: ir.Model, plan: QuantPlan) -> dict[str, str]:
    """Values in the emitted graph that parity looks at, and which of the plan's they are.

    Codes (``<value>_quantized``, or an output that is codes), in QONNX files the rounded values,
    and what a site writes in floats.
    """
    present = {n: v for n, v in by_name(emitted.graph).items() if v.producer() is not None}
    found = {}
    for value in plan.grid_of:
        if value in plan.codes:
            continue
        for name in (f"{value}_quantized", f"{value}_dequantized", value):
            # A model may have a value of that name; then ours goes by another, unwatched.
            if name in present and (present[name].dtype in INTEGERS or _rounded(present[name])):
                found[name] = value
                break
    floats = [s.output for s in plan.sites.values() if s.output not in plan.grid_of]
    for dynamic in plan.dynamic.values():
        floats += [dynamic.input, *dynamic.outputs]
    return found | {name: name for name in floats if name in present}


def _rounded(value: ir.Value) -> bool:
    """True for what an operator of QONNX makes."""
    producer = value.producer()
    return producer is not None and producer.op_type in ("Quant", "BipolarQuant")


def with_outputs(emitted: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of the emitted model that also returns the named values."""
    copy = emitted.clone()
    values = by_name(copy.graph)
    have = {v.name for v in copy.graph.outputs}
    copy.graph.outputs.extend(values[n] for n in names if n not in have)
    return copy
