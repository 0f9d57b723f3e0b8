"""Loading of models into one form: a graph with a recent opset, unique names and known shapes."""

from qtool.loading.dequantize.dequantize import load_requantized
from qtool.loading.onnx_loader import (
    Loaded,
    bind_shapes,
    infer_shapes,
    load_model,
    quantized_nodes,
    read_graph,
)

__all__ = [
    "Loaded",
    "bind_shapes",
    "infer_shapes",
    "load_model",
    "load_requantized",
    "quantized_nodes",
    "read_graph",
]
