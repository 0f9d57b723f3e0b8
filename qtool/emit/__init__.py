"""Writing quantized models. The emitter does no arithmetic: it places codes, scales and nodes."""

from qtool.emit.qdq import emit_qdq
from qtool.graph_save import save_model

__all__ = ["emit_qdq", "save_model"]
