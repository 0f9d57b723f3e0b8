"""Reading models: every file becomes one graph in memory, with a known opset, names and shapes."""

from qtool.loading.dequantize.dequantize import load_requantized
from qtool.loading.onnx_loader import Loaded, bind_shapes, infer_shapes, load_model, read_graph

__all__ = [
    "Loaded",
    "bind_shapes",
    "infer_shapes",
    "load_model",
    "load_requantized",
    "read_graph",
]
