"""Loading of PyTorch models through an exported ONNX graph."""
