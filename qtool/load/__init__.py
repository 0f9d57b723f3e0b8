"""Reading models: every file becomes one graph in memory, with a known opset, names and shapes."""

from qtool.load.onnx import Loaded, bind_shapes, infer_shapes, load_model, read_graph
from qtool.load.requantize import load_requantized

__all__ = [
    "Loaded",
    "bind_shapes",
    "infer_shapes",
    "load_model",
    "load_requantized",
    "read_graph",
]
