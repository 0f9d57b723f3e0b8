"""What parity looks at in the emitted file: a copy that also returns its codes."""

from collections.abc import Sequence

import onnx_ir as ir

from qtool.graph import by_name, macs
from qtool.plan import QuantPlan

# Multiply-accumulates that parity and layer noise may cost: a few seconds on one core.
MACS = 1_000_000_000
MOST_SAMPLES = 64

INTEGERS = {ir.DataType.UINT8, ir.DataType.INT8}


def sample_count(model: ir.Model, available: int) -> int:
    """How many samples parity can afford."""
    each = sum(macs(node) for node in model.graph) or 1
    return int(min(max(MACS // each, 2), MOST_SAMPLES, available))


def observable(emitted: ir.Model, plan: QuantPlan) -> tuple[str, ...]:
    """Names of values in the emitted graph that parity looks at: codes, and float site outputs."""
    present = by_name(emitted.graph)
    names = [f"{v}_quantized" for v in plan.grid_of if v not in plan.codes]
    # A model may have a float value of that name; then its codes go by another, unwatched.
    codes = [n for n in names if n in present and present[n].dtype in INTEGERS]
    floats = [s.output for s in plan.sites.values() if s.output not in plan.grid_of]
    for dynamic in plan.dynamic.values():
        floats += [dynamic.input, *dynamic.outputs]
    return (*codes, *(n for n in dict.fromkeys(floats) if n in present))


def watched_model(emitted: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the emitted model that also returns the named values."""
    copy = emitted.clone()
    values = by_name(copy.graph)
    have = {v.name for v in copy.graph.outputs}
    copy.graph.outputs.extend(values[n] for n in names if n not in have)
    return copy
