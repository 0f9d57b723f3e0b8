"""Codes sent through a file: packed by an emitter of a few lines, widened by ONNX Runtime."""

import numpy as np
import onnx_ir as ir
from models import run

from qtool.emitters.packing import widen
from qtool.quant.primitives import Codebook, QuantParams, QuantSpec

ONE, ZERO = np.float32(1), np.int32(0)


class Graph:
    """Collects what packing makes."""

    def __init__(self) -> None:
        self.constants: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def constant(self, name, data):
        if name not in self.constants:
            tensor = ir.Tensor(data) if isinstance(data, np.ndarray) else data
            tensor.name = name
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
            self.constants[name] = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
        return self.constants[name]

    def step(self, op, inputs, out, **attributes):
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        name = f"{out}:{len(self.nodes)}"
        node = ir.Node("", op, inputs, attrs, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]


def grid(bits: int, signed: bool = True, symmetric: bool = True) -> QuantParams:
    return QuantParams(QuantSpec(bits, signed, symmetric), ONE, ZERO)


def book(levels, bits: int = 8) -> Codebook:
    return Codebook(QuantSpec(bits, True, True), ONE, ZERO, np.asarray(levels, np.int32))


def model_of(codes, params, forms, shift=0) -> ir.Model:
    """A model that takes nothing and gives the widened codes and one more of their type."""
    store = Graph()
    value = widen(store, "w", codes, params, forms, shift)
    out = store.step("Identity", [value], "y")
    out.type = ir.TensorType(ir.DataType.from_numpy(codes.dtype))
    graph = ir.Graph(
        [],
        [out],
        nodes=store.nodes,
        initializers=list(store.constants.values()),
        opset_imports={"": 25 if "int2" in forms else 21},
        name="g",
    )
    out.name = "y"
    return ir.Model(graph, ir_version=13 if "int2" in forms else 10)


def widened(codes, params, forms, shift=0, level: int = 99) -> np.ndarray:
    """The codes as ONNX Runtime widens them."""
    return run(model_of(codes, params, forms, shift), {}, level)["y"]
