"""Read from an ONNX file of any tool which layers it stores as integers."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx

# Operators between a stored weight and its layer.
PASSED = ("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze")
INTEGER_LAYERS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm")


def stored_layers(source: Path, file: Path) -> dict[str, Any]:
    """Count the layers with a constant weight, and those whose weight passes through integers.

    A tool that writes its input unchanged reports success; its file has no quantized layer.

    Args:
        source: the float model.
        file: the quantized one.

    Returns:
        ``layers`` of the float model (Conv, ConvTranspose, Gemm, MatMul with a constant weight),
        ``types`` of the weights in the file ({"int8": 3, "float": 1}; a float weight behind
        QuantizeLinear is "float, Q"; "int8 of 4 bits" has codes from -8 to 7), and the number of
        ``quantize_linear`` nodes.
    """
    model = onnx.load(file)
    nodes = list(model.graph.node)
    types = Counter(kind for kind in _weight_types(model) if kind)
    return {
        "layers": sum(1 for kind in _weight_types(onnx.load(source)) if kind),
        "types": dict(types),
        "quantize_linear": sum(node.op_type == "QuantizeLinear" for node in nodes),
    }


def _weight_types(model: onnx.ModelProto) -> list[str | None]:
    """Return how each layer's weight is stored; None: it is not constant."""
    constants = {t.name: _stored_type(t) for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                constants[node.output[0]] = _stored_type(value)

    def stored(name: str) -> str | None:
        if name in constants:
            return constants[name]
        node = producers.get(name)
        if node is None:
            return None
        if node.op_type in (*PASSED, "DequantizeLinear"):
            return stored(node.input[0])
        if "QuantizeLinear" in node.op_type or "FakeQuant" in node.op_type:
            source = stored(node.input[0])
            return None if source is None else f"{source}, Q"
        return None

    return [
        stored(node.input[3 if node.op_type.startswith(("QLinear", "QGemm")) else 1])
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", *INTEGER_LAYERS)
    ]


def _stored_type(tensor: onnx.TensorProto) -> str:
    """Return the type of a constant; INT8 whose codes all fit 4 bits is named so."""
    name = str(onnx.TensorProto.DataType.Name(tensor.data_type)).lower()
    if name == "int8":
        codes = onnx.numpy_helper.to_array(tensor)
        if codes.ndim > 1 and codes.min() >= -8 and codes.max() <= 7:
            return "int8 of 4 bits"
    return name
