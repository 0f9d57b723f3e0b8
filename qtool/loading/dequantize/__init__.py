"""Conversion of quantized ONNX models to float models."""
