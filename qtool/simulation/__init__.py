"""Simulate a plan: fake-quantized on torch, or bit-exact integer kernels.

Importing this package loads neither torch nor onnxruntime.
"""
