"""Check that an integer-only network has no float ops between integer kernels."""

import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.queries import is_float, name_of
from qtool.quant.plan import QuantPlan


def check_no_float_nodes(model: ir.Model, plan: QuantPlan) -> None:
    """Check that float ops are only in front of the first codes and behind the last.

    Args:
        model: the rewritten graph.
        plan: annotated.

    Raises:
        UnsupportedError: a float op is computed from outputs of integer kernels, and an integer
            kernel from its outputs.
    """
    inner = plan.integer_nodes
    behind: set[str | None] = set()
    for node in model.graph:
        producers = {
            p.name for v in node.inputs if v is not None and (p := v.producer()) is not None
        }
        if producers & (inner | behind):
            behind.add(node.name)
    ahead: set[str | None] = set()
    for node in reversed(list(model.graph)):
        if {reader.name for out in node.outputs for reader, _ in out.uses()} & (inner | ahead):
            ahead.add(node.name)
    for node in model.graph:
        name = name_of(node)
        if name in (behind & ahead) - inner and any(is_float(out) for out in node.outputs):
            reason = plan.float_nodes.get(name, "it computes in float")
            raise UnsupportedError(
                f'node "{name}" ({node.op_type}) is between integer kernels, and the '
                f"integer-only reference has no floats there: {reason}; replace the op in the "
                "model, or choose a target with floats"
            )
