"""Convert quantized ONNX files back to floats."""
