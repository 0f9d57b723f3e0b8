"""Simulation of a plan: fake-quantized on torch, or by bit-exact integer kernels.

Importing this package loads neither torch nor onnxruntime.
"""
