"""Load torch models through an exported ONNX graph."""
