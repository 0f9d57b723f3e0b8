"""Choose the intermediate values that parity compares, and return them as model outputs."""

from collections.abc import Iterable

import onnx_ir as ir

from qtool.graph.queries import by_name, macs
from qtool.quant.plan import QuantPlan

# Multiply-accumulates that parity and layer noise may take: a few seconds on one core.
MACS = 1_000_000_000
# Limit for small models: every sample is a capture on disk.
MOST_SAMPLES = 64

INTEGERS = {ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16}


def sample_count(model: ir.Model, available: int) -> int:
    """Return the number of samples to compare: as many as ``MACS`` allows, at least 2.

    Args:
        model: the rewritten float graph.
        available: number of evaluation samples.
    """
    each = sum(macs(node) for node in model.graph) or 1
    return int(min(max(MACS // each, 2), MOST_SAMPLES, available))


def capturable_values(emitted: ir.Model, plan: QuantPlan) -> dict[str, str]:
    """Return the values of the emitted graph that parity compares, with their names in the plan.

    These are codes (``<value>_quantized``, or an output of codes), in QONNX files the rounded
    values, and float outputs of sites.

    Args:
        emitted: the graph that was written to the file.
        plan: frozen.

    Returns:
        Value name in the file -> value name in the plan.
    """
    present = {n: v for n, v in by_name(emitted.graph).items() if v.producer() is not None}
    captured = {}
    for value in plan.grid_of:
        if value in plan.codes:
            continue
        for name in (f"{value}_quantized", f"{value}_dequantized", value):
            # A model may itself have a value of that name. The emitter then picks another name for
            # the codes, and they are not compared.
            if name in present and (present[name].dtype in INTEGERS or _rounded(present[name])):
                captured[name] = value
                break
    floats = [s.output for s in plan.sites.values() if s.output not in plan.grid_of]
    for dynamic in plan.dynamic.values():
        floats += [dynamic.input, *dynamic.outputs]
    return captured | {name: name for name in floats if name in present}


def _rounded(value: ir.Value) -> bool:
    """Return whether a quantizer of QONNX computes the value."""
    producer = value.producer()
    return producer is not None and producer.op_type in ("Quant", "BipolarQuant")


def with_outputs(emitted: ir.Model, names: Iterable[str]) -> ir.Model:
    """Return a copy of the emitted model with the named values as further outputs."""
    copy = emitted.clone()
    values = by_name(copy.graph)
    present = {v.name for v in copy.graph.outputs}
    copy.graph.outputs.extend(values[n] for n in names if n not in present)
    return copy
