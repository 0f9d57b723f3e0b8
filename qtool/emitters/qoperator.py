"""Emit QOperator ONNX: quantized operators in place of float operators between Q and DQ.

It is made from the QDQ model, so that both have the codes, scales and names of one plan: each
site's DequantizeLinears, operator and QuantizeLinear become the operator that ONNX Runtime fuses
them into. Operators of the domain ``com.microsoft`` are ONNX Runtime's.

Source: ONNX operators QLinearConv, QLinearMatMul; ONNX Runtime ContribOperators.md.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.edit import add_initializer
from qtool.graph.queries import is_constant, nodes_by_name
from qtool.quant.plan import QuantPlan, Site

EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)


class Codes(NamedTuple):
    """An operand or a result in integers: its codes, scale and zero point in the graph."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None

    @property
    def parts(self) -> list[ir.Value | None]:
        """Codes, scale and zero point, the order of nearly all operators."""
        return [self.codes, self.scale, self.zero]


class Form(NamedTuple):
    """The quantized operator of a site: its inputs, and the attributes to add or to leave out."""

    op: str
    inputs: list[ir.Value | None]
    domain: str = "com.microsoft"
    added: tuple[ir.Attr, ...] = ()
    without: tuple[str, ...] = ()


def to_operators(emitted: ir.Model, plan: QuantPlan) -> ir.Model:
    """Replace Q/DQ pairs by quantized operators, in place; return the model.

    A site without such an operator keeps its pairs, which ONNX Runtime fuses as it does in QDQ
    files. Packed weights stay packed: the runtime folds the unpacking at load.

    Args:
        emitted: result of ``emit_qdq`` for the plan.
        plan: frozen.

    Raises:
        UnsupportedError: a site reads or writes codes wider than 8 bits (exit 3).
    """
    nodes = nodes_by_name(emitted.graph)
    for site in plan.sites.values():
        # A GlobalAveragePool that writes floats was replaced by emit_qdq, and is no node any more.
        if site.op in FORMS and site.name in nodes:
            _replace(nodes[site.name], site, plan)
    for name in plan.data_movement_ops:
        if name in nodes:
            _on_codes(nodes[name])
    _drop_unread(emitted.graph)
    emitted.opset_imports.setdefault("com.microsoft", 1)
    return emitted


def _replace(node: ir.Node, site: Site, plan: QuantPlan) -> None:
    """Replace the pairs and the node of a site by the quantized operator."""
    graph = node.graph
    quantizer = _quantizer(node.outputs[0]) if site.output in plan.grid_of else None
    if not isinstance(graph, ir.Graph) or (quantizer is None and site.output in plan.grid_of):
        return  # an activation with computed limits follows, a float operator
    operands = [None if v is None else _dequantized(v) for v in node.inputs]
    result = None if quantizer is None else _quantized_result(quantizer)
    for part in (*operands, result):
        _check_width(site, part)
    form = FORMS[site.op]([_with_zero(graph, part) for part in operands], result)
    shared = [a for name, a in node.attributes.items() if name not in form.without]
    new = ir.Node(form.domain, form.op, form.inputs, [*shared, *form.added], name=node.name)
    graph.insert_before(node, new)
    old, out = (node if quantizer is None else quantizer).outputs[0], new.outputs[0]
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=old.is_graph_output())
    out.name, out.type, out.shape = old.name, old.type, old.shape
    for replaced in (quantizer, node):
        if replaced is not None:
            graph.remove(replaced, safe=True)


def _check_width(site: Site, part: Codes | None) -> None:
    dtype = part.codes.dtype if part is not None else None
    if dtype not in (None, ir.DataType.INT32, *EIGHT_BITS):
        raise UnsupportedError(
            f'output.format: qoperator: "{site.name}" works on {str(dtype).lower()} codes, but '
            f"there is a quantized {site.op} for 8 bits only; use format qdq, or 8 bits for this "
            "layer"
        )


def _with_zero(graph: ir.Graph, part: Codes | None) -> Codes | None:
    """Add the zero point that DequantizeLinear may leave out and quantized operators need."""
    if part is None or part.zero is not None or part.codes.dtype not in EIGHT_BITS:
        return part
    array = np.zeros((), part.codes.dtype.numpy())
    name = f"zero_of_{array.dtype}"
    if name not in graph.initializers:
        add_initializer(graph, name, array)
    return part._replace(zero=graph.initializers[name])


def _on_codes(node: ir.Node) -> None:
    """Make a data movement op between DQ and Q read and write codes."""
    source = node.inputs[0]
    if source is None or source.dtype in EIGHT_BITS or node.graph is None:
        return
    read, quantizers = _dequantized(source), [_quantizer(out) for out in node.outputs]
    if read is None or read.codes.dtype not in EIGHT_BITS or None in quantizers:
        return
    node.replace_input_with(0, read.codes)
    for out, quantizer in zip(node.outputs, quantizers, strict=True):
        if quantizer is None or quantizer.graph is None:
            continue
        codes = quantizer.outputs[0]
        ir.convenience.replace_all_uses_with(
            codes, out, replace_graph_outputs=codes.is_graph_output()
        )
        quantizer.graph.remove(quantizer, safe=True)
        out.name, out.type = codes.name, codes.type


def _dequantized(value: ir.Value) -> Codes | None:
    """Return the codes, scale and zero point of a value that a DequantizeLinear writes."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    codes, scale, *zero = producer.inputs
    if codes is None or scale is None:
        raise AssertionError(f"{producer.name} lacks an input")
    return Codes(codes, scale, zero[0] if zero else _zeros(producer, codes, scale))


def _zeros(dequantizer: ir.Node, codes: ir.Value, scale: ir.Value) -> ir.Value | None:
    """Add zeros for the zero point that a DequantizeLinear left out, in the shape of its scale."""
    if codes.dtype not in EIGHT_BITS or scale.shape is None or dequantizer.graph is None:
        return None
    name = f"{codes.name}_zero_point"
    if name not in dequantizer.graph.initializers:
        zeros = np.zeros(scale.shape.numpy(), codes.dtype.numpy())
        add_initializer(dequantizer.graph, name, zeros)
    return dequantizer.graph.initializers[name]


def _quantized_result(quantizer: ir.Node) -> Codes:
    """Return the codes that a QuantizeLinear writes, with their scale and zero point."""
    _, scale, zero = quantizer.inputs
    if scale is None:
        raise AssertionError(f"{quantizer.name} lacks a scale")
    return Codes(quantizer.outputs[0], scale, zero)


def _quantizer(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that is the only reader of a value, or None."""
    uses = [node for node, _ in value.uses()]
    only = len(uses) == 1 and uses[0].op_type == "QuantizeLinear" and not value.is_graph_output()
    return uses[0] if only else None


def _drop_unread(graph: ir.Graph) -> None:
    """Remove nodes and initializers without readers."""
    for node in reversed(list(graph)):
        if all(not out.uses() and not out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if is_constant(value) and not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


Operands = list[Codes | None]


def _need(part: Codes | None) -> Codes:
    if part is None:
        raise AssertionError("an operand of an integer site is not dequantized codes")
    return part


def _bias(operands: Operands) -> list[ir.Value | None]:
    """Return the codes of the bias; the operator computes its scale s_x * s_w itself."""
    bias = operands[2] if len(operands) > 2 else None
    return [] if bias is None else [bias.codes]


def _conv(operands: Operands, out: Codes | None) -> Form:
    x, w, y = _need(operands[0]), _need(operands[1]), _need(out)
    inputs = [*x.parts, *w.parts, y.scale, y.zero, *_bias(operands)]
    return Form("QLinearConv", inputs, "")


def _matmul(operands: Operands, out: Codes | None) -> Form:
    a, b = _need(operands[0]), _need(operands[1])
    if out is not None:
        return Form("QLinearMatMul", [*a.parts, *b.parts, out.scale, out.zero], "")
    inputs = [a.codes, b.codes, a.scale, b.scale, a.zero, b.zero]
    return Form("MatMulIntegerToFloat", inputs)


def _gemm(operands: Operands, out: Codes | None) -> Form:
    a, b = _need(operands[0]), _need(operands[1])
    inputs = [*a.parts, *b.parts, *_bias(operands)]
    if out is not None:
        inputs += [None] * (7 - len(inputs)) + [out.scale, out.zero]
    return Form("QGemm", inputs, without=("beta",))


def _two(op: str) -> Callable[[Operands, Codes | None], Form]:
    def form(operands: Operands, out: Codes | None) -> Form:
        a, b, y = _need(operands[0]), _need(operands[1]), _need(out)
        return Form(op, [*a.parts, *b.parts, y.scale, y.zero])

    return form


def _one(
    op: str, added: tuple[ir.Attr, ...] = (), without: tuple[str, ...] = ()
) -> Callable[[Operands, Codes | None], Form]:
    def form(operands: Operands, out: Codes | None) -> Form:
        x, y = _need(operands[0]), _need(out)
        return Form(op, [*x.parts, y.scale, y.zero], added=added, without=without)

    return form


def _concat(operands: Operands, out: Codes | None) -> Form:
    y = _need(out)
    each = [part for operand in operands for part in _need(operand).parts]
    return Form("QLinearConcat", [y.scale, y.zero, *each])


CHANNELS_FIRST = (ir.AttrInt64("channels_last", 0),)

FORMS: dict[str, Callable[[Operands, Codes | None], Form]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _two("QLinearAdd"),
    "Mul": _two("QLinearMul"),
    "Concat": _concat,
    "Sigmoid": _one("QLinearSigmoid"),
    "LeakyRelu": _one("QLinearLeakyRelu"),
    # Annotation accepts dilations of 1 only, and the operator has no such attribute.
    "AveragePool": _one("QLinearAveragePool", CHANNELS_FIRST, ("dilations",)),
    "GlobalAveragePool": _one("QLinearGlobalAveragePool", CHANNELS_FIRST),
}
