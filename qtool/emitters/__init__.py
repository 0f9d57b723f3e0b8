"""Write quantized models. Emitters place codes, scales and nodes; rounding is done before."""

import onnx_ir as ir

from qtool.emitters.qdq import emit_qdq
from qtool.emitters.qonnx import emit_qonnx
from qtool.emitters.qoperator import to_operators
from qtool.emitters.quantized_io import quantize_io
from qtool.graph.save import save_model
from qtool.quant.plan import QuantPlan
from qtool.quant.quantized_io import QuantizedIO
from qtool.targets.target import Target

__all__ = ["emit_model", "emit_qdq", "save_model"]


def emit_model(
    model: ir.Model, plan: QuantPlan, target: Target, form: str = "qdq", io: str = "float"
) -> tuple[ir.Model, QuantizedIO, list[str]]:
    """Emit the quantized model in one of the formats.

    Args:
        model: the rewritten float graph; unchanged.
        plan: frozen.
        target: its rules name the ops that work directly on codes, and the packed forms.
        form: ``qdq``, ``qoperator`` or ``qonnx``.
        io: ``quantized`` for inputs and outputs that are codes, else ``float``; qonnx has floats
            only.

    Returns:
        The model, the grids of inputs and outputs that are codes, and one sentence for each input
        and output that stays float under ``quantized``.

    Raises:
        UnsupportedError: the format cannot represent the plan (exit 3).
    """
    if form == "qonnx":
        return emit_qonnx(model, plan), QuantizedIO(), []
    emitted = emit_qdq(model, plan, target)
    if form == "qoperator":
        emitted = to_operators(emitted, plan)
    if io == "float":
        return emitted, QuantizedIO(), []
    return (emitted, *quantize_io(emitted, plan))
