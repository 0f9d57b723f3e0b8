"""Emit dynamically quantized MatMul, Gemm and LSTM nodes in the forms that ONNX Runtime fuses.

A MatMul or Gemm becomes DynamicQuantizeLinear, MatMulInteger, Cast, and a Mul by the product of
both scales. ONNX Runtime fuses that to DynamicQuantizeMatMul, or to MatMulIntegerToFloat where
several layers read one input. Two Muls, one for each scale, or Q and DQ with computed scales are
not fused and run slower than floats. An LSTM becomes ONNX Runtime's own DynamicQuantizeLSTM.
"""

from typing import Protocol

import numpy as np
import onnx_ir as ir

from qtool.emitters.packing import Store
from qtool.graph.queries import attribute
from qtool.quant.plan import DynamicSite, QuantPlan
from qtool.quant.primitives import QuantParams

MICROSOFT = "com.microsoft"

DynamicInput = tuple[ir.Value, ir.Value, ir.Value]  # codes, scale, zero point


class Emitter(Store, Protocol):
    """The methods of an emitter that this module uses."""

    graph: ir.Graph
    plan: QuantPlan

    def unique(self, base: str) -> str:
        """Return ``base``, or a name that starts with it, that no value or node has."""

    def codes(self, name: str, params: QuantParams) -> ir.Value:
        """Add the codes of an initializer, packed if the target can; return the unpacked value."""


def write_dynamic(make: Emitter) -> None:
    """Replace every node of ``plan.dynamic`` and its outputs."""
    inputs: dict[ir.Value, DynamicInput] = {}
    for node in list(make.graph):
        site = make.plan.dynamic.get(node.name or "")
        if site is None:
            continue
        if site.op == "LSTM":
            _lstm(make, node, site)
        else:
            _product(make, node, site, inputs)


def _product(
    make: Emitter, node: ir.Node, site: DynamicSite, inputs: dict[ir.Value, DynamicInput]
) -> None:
    """Replace a MatMul or Gemm; ``inputs`` holds those that earlier nodes quantized."""
    x, name = _required_input(node, 0), site.name
    if x not in inputs:
        inputs[x] = _quantize_input(make, x, site.input)
    codes, scale, zero = inputs[x]
    (weight,) = site.weights
    rows = _codes(make, weight, transposed=bool(attribute(node, "transB", 0)))
    sums = make.step("MatMulInteger", [codes, rows, zero], f"{name}/sums")
    floats = make.step("Cast", [sums], f"{name}/floats", to=ir.DataType.FLOAT.value)
    column = make.constant(f"{weight}_scale", make.plan.qparams(weight).scale)
    factor = make.step("Mul", [scale, column], f"{name}/scale")
    result = make.step("Mul", [floats, factor], f"{name}/product")
    readers = [sums, factor]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = make.step("Add", [result, node.inputs[2]], f"{name}/sum")
        readers.append(result)
    _replace_outputs(make, node, [(node.outputs[0], result)])
    # Size and parity checks find the readers of codes, scales and bias by these names.
    for value, node_name in zip(readers, site.nodes, strict=False):
        if (reader := value.producer()) is not None:
            reader.name = node_name


def _quantize_input(make: Emitter, x: ir.Value, name: str) -> DynamicInput:
    """Add a DynamicQuantizeLinear behind a value; return its three outputs."""
    codes = make.step("DynamicQuantizeLinear", [x], f"{name}_dynamic")
    node = codes.producer()
    if node is None:
        raise AssertionError("a new value has no producer")
    node.resize_outputs(3)
    _, scale, zero = node.outputs
    scale.name, zero.name = (make.unique(f"{name}_dynamic_{part}") for part in ("scale", "zero"))
    return codes, scale, zero


def _lstm(make: Emitter, node: ir.Node, site: DynamicSite) -> None:
    """Replace an LSTM by a DynamicQuantizeLSTM, whose inputs 8 to 11 are scales and zero points."""
    make.graph.opset_imports[MICROSOFT] = 1
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * 8][:8]
    for position, name in enumerate(site.weights, 1):
        params, (directions, gates, _) = make.plan.qparams(name), make.plan.codes[name].shape
        # The plan's scale is [4 * hidden] or [] for all directions; the kernel has one for each.
        shape = [directions, gates] if params.scale.ndim else [directions]
        scale = np.ascontiguousarray(np.broadcast_to(params.scale, shape))
        inputs[position] = _codes(make, name, transposed=True)
        inputs.append(make.constant(f"{name}_rows_scale", scale))
        inputs.append(make.constant(f"{name}_rows_zero", np.zeros(shape, np.int8)))
    attributes = [a for a in node.attributes.values() if a.name not in ("layout", "hidden_size")]
    attributes.append(ir.AttrInt64("hidden_size", make.plan.codes[site.weights[1]].shape[-1]))
    lstm = ir.Node(
        MICROSOFT, "DynamicQuantizeLSTM", inputs, attributes, num_outputs=3, name=site.name
    )
    make.graph.append(lstm)
    for new in lstm.outputs:
        new.name, new.type = "", ir.TensorType(ir.DataType.FLOAT)
    pairs = zip(node.outputs, lstm.outputs, strict=False)
    _replace_outputs(make, node, [(old, new) for old, new in pairs if old.name])
    # Named also where the model does not read it: parity checks the states of all steps.
    lstm.outputs[0].name = site.outputs[0]


def _required_input(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    if value is None:
        raise AssertionError(f"{node.name} lost its input {position}")
    return value


def _codes(make: Emitter, name: str, transposed: bool) -> ir.Value:
    """Add the codes of a weight, with its last two axes swapped if ``transposed``."""
    codes = make.codes(name, make.plan.qparams(name))
    if not transposed:
        return codes
    rank = make.plan.codes[name].ndim
    order = [*range(rank - 2), rank - 1, rank - 2]
    return make.step("Transpose", [codes], f"{name}_turned", perm=order)


def _replace_outputs(make: Emitter, node: ir.Node, pairs: list[tuple[ir.Value, ir.Value]]) -> None:
    """Replace old values by new ones, names included, and remove the old node."""
    for old, new in pairs:
        shared = old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=shared)
    make.graph.remove(node, safe=True)
    for old, new in pairs:
        new.name, new.shape, new.type = old.name, old.shape, old.type
