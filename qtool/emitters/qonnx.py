"""Emit QONNX: a float graph with ``Quant`` and ``BipolarQuant`` where values are rounded to a grid.

QONNX is a format of FPGA compilers for any number of bits. All tensors are floats; the operators
define their possible values. Weights are stored as rounded values, so ``Quant`` behind them changes
nothing. The file also defines both operators as functions of standard operators: ONNX Runtime runs
it in floats, and compilers see only the operators.

Source: Pappalardo et al. 2022, "QONNX: Representing Arbitrary-Precision Quantized Neural
Networks", sec. 4, arXiv:2206.07527.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.emitters.copy import copy_model
from qtool.errors import UnsupportedError
from qtool.graph.edit import Names, add_initializer
from qtool.graph.queries import by_name, name_of
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import Codebook, QuantParams, align, dequantize

DOMAIN = "qonnx.custom_op.general"


def emit_qonnx(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """Return a copy of the model with ``Quant`` or ``BipolarQuant`` behind every quantized value.

    Args:
        model: the rewritten float graph; unchanged.
        plan: frozen: every value on a grid has QuantParams, every weight and bias has codes.

    Raises:
        UnsupportedError: a site is dynamic, but scales of Quant are constant.
    """
    if plan.dynamic:
        raise UnsupportedError(
            f"output.format: qonnx has constant scales only, but {next(iter(plan.dynamic))} reads "
            "dynamic activations; write activations: 8, or format: qdq"
        )
    copy = copy_model(model, plan, 10)
    emitter = _Emitter(copy.graph, plan)
    emitter.run()
    opset = copy.graph.opset_imports[""]
    for function in (quant_function(opset), bipolar_function(opset)):
        if function.name in emitter.used:
            copy.functions[function.identifier()] = function
            copy.graph.opset_imports[DOMAIN] = 1
    return copy


class _Emitter:
    """The graph being edited, the initializers added so far, and the operators used."""

    def __init__(self, graph: ir.Graph, plan: QuantPlan) -> None:
        self.graph = graph
        self.plan = plan
        self.integer = plan.integer_nodes
        self.used: set[str] = set()
        self.shared: dict[str, ir.Value] = {}
        self.unique = Names(graph).unique

    def run(self) -> None:
        """Round every value on a grid once: where it is computed, or in front of its readers."""
        for value in [v for v in by_name(self.graph).values() if v.name in self.plan.grid_of]:
            producer = value.producer()
            if value.name in self.plan.codes:
                self._constant(value)
            elif producer is None or producer.name not in self.plan.data_movement_ops:
                self._activation(value)
        self.graph.sort()
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _activation(self, value: ir.Value) -> None:
        producer = value.producer()
        in_integers = producer is not None and producer.name in self.integer
        uses = [use for use in value.uses() if in_integers or use[0].name in self.integer]
        output = value.is_graph_output() and in_integers
        if not uses and not output:
            return
        rounded = self._rounded(value, name_of(value))
        for reader, index in uses:
            reader.replace_input_with(index, rounded)
        if output:
            for index, graph_output in enumerate(self.graph.outputs):
                if graph_output is value:
                    self.graph.outputs[index] = rounded
            rounded.name, value.name = value.name, self.unique(f"{value.name}_float")

    def _constant(self, value: ir.Value) -> None:
        """Round an initializer; float readers read the unrounded one, unless it is weight-only."""
        name = name_of(value)
        weight_only = name in self.plan.weight_only
        uses = [use for use in value.uses() if weight_only or use[0].name in self.integer]
        codes, params = self.plan.codes[name], self.plan.qparams(name)
        array = np.asarray(dequantize(codes.astype(np.float64), params), np.float32)
        if len(uses) == len(tuple(value.uses())) and not value.is_graph_output():
            value.const_value, source = ir.Tensor(array, name=name), value
        else:
            source = self._initializer(f"{name}_on_grid", array)
        rounded = self._rounded(source, name)
        for reader, index in uses:
            reader.replace_input_with(index, rounded)

    def _rounded(self, value: ir.Value, name: str) -> ir.Value:
        """Add ``Quant`` or ``BipolarQuant`` behind a value, on the grid of ``name``."""
        params = self.plan.qparams(name)
        scale, zero = align(params, np.empty(value.shape.numpy() if name in self.plan.codes else 0))  # type: ignore[union-attr]
        grid = self.plan.grid_of[name]
        inputs = [value, self._initializer(f"{grid}_scale", scale)]
        attributes: dict[str, Any] = {}
        op = "BipolarQuant" if is_bipolar(params) else "Quant"
        if op == "Quant":
            bits = bits_of(params)
            inputs.append(self._initializer(f"{grid}_zero_point", zero))
            inputs.append(self._initializer(f"bits_{bits}", np.float32(bits)))
            signed = params.spec.signed
            lowest = 1 - 2 ** (params.spec.bits - 1)
            narrow = params.spec.qmin == lowest or isinstance(params, Codebook)
            attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
        self.used.add(op)
        node = ir.Node(
            DOMAIN,
            op,
            inputs,
            [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()],
            name=self.unique(f"{name}_{op}"),
        )
        self.graph.append(node)
        out = node.outputs[0]
        out.name, out.shape = self.unique(f"{name}_dequantized"), value.shape
        out.type = ir.TensorType(ir.DataType.FLOAT)
        return out

    def _initializer(self, name: str, array: object) -> ir.Value:
        if name not in self.shared:
            data = np.asarray(array, np.float32)
            self.shared[name] = add_initializer(self.graph, self.unique(name), data)
        return self.shared[name]


def is_bipolar(params: QuantParams) -> bool:
    """Return True for a grid of two values, minus and plus the scale."""
    return isinstance(params, Codebook) and params.levels.tolist() == [-1, 1]


def bits_of(params: QuantParams) -> int:
    """Return the bits of ``Quant``: the grid's own, or the fewest for a code book's levels."""
    if not isinstance(params, Codebook):
        return params.spec.bits
    return int(np.abs(params.levels).max()).bit_length() + 1


class _Body:
    """The body of a function under construction: every call adds a node and returns its output."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        attrs = [
            a if isinstance(a, ir.Attr) else ir.convenience.convert_attribute(k, a)
            for k, a in attributes.items()
        ]
        node = ir.Node("", op, inputs, attrs)
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def number(self, value: float) -> ir.Value:
        return self("Constant", value_float=float(value))

    def function(
        self,
        name: str,
        inputs: list[ir.Value],
        out: ir.Value,
        attributes: list[ir.Attr],
        opset: int,
    ) -> ir.Function:
        graph = ir.Graph(inputs, [out], nodes=self.nodes, opset_imports={"": opset})
        return ir.Function(DOMAIN, name, graph=graph, attributes=attributes)


def quant_function(opset: int) -> ir.Function:
    """Define ``Quant`` in standard operators.

    y = (round(clip(x / scale + zero_point, low, high)) - zero_point) * scale

    The format adds the zero point before rounding: where it is odd, a value half-way between two
    codes is rounded in the other direction than by QuantizeLinear.

    Args:
        opset: version of the standard operators.
    """
    body = _Body()
    x, scale, zero, bits = (ir.val(n) for n in ("x", "scale", "zeropt", "bitwidth"))
    signed, narrow = (
        body(
            "Cast",
            body("Constant", value_int=ir.RefAttr("value_int", name, ir.AttributeType.INT)),
            to=ir.DataType.FLOAT.value,
        )
        for name in ("signed", "narrow")
    )
    one = body.number(1)
    levels = body("Pow", body.number(2), body("Sub", bits, signed))
    unsigned = body("Sub", one, signed)
    high = body("Sub", body("Sub", levels, one), body("Mul", narrow, unsigned))
    low = body("Mul", signed, body("Sub", narrow, levels))
    steps = body("Add", body("Div", x, scale), zero)
    codes = body("Round", body("Clip", steps, low, high))
    out = body("Mul", body("Sub", codes, zero), scale)
    attributes: list[ir.Attr] = [
        ir.AttrInt64("signed", 1),
        ir.AttrInt64("narrow", 1),
        ir.AttrString("rounding_mode", "ROUND"),
    ]
    return body.function("Quant", [x, scale, zero, bits], out, attributes, opset)


def bipolar_function(opset: int) -> ir.Function:
    """Define ``BipolarQuant`` in standard operators: y = scale where x >= 0, else -scale.

    Args:
        opset: version of the standard operators.
    """
    body = _Body()
    x, scale = ir.val("x"), ir.val("scale")
    plus = body("GreaterOrEqual", x, body.number(0))
    signs = body("Where", plus, body.number(1), body.number(-1))
    return body.function("BipolarQuant", [x, scale], body("Mul", signs, scale), [], opset)
