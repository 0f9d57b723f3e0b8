"""Implement ONNX operators in torch, one module for each family."""
