"""Quantization-aware training: the fake-quantized graph itself learns."""
