"""Query, edit and save ``onnx_ir`` graphs."""
