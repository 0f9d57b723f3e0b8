"""Measure the written file: ONNX Runtime, parity with the simulation, kernels, bytes, accuracy."""
