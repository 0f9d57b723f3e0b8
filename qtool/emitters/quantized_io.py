"""Make inputs and outputs of a file codes: no QuantizeLinear first, no DequantizeLinear last."""

import json

import onnx_ir as ir

from qtool.graph.queries import name_of
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams
from qtool.quant.quantized_io import KEY, QuantizedIO


def quantize_io(emitted: ir.Model, plan: QuantPlan) -> tuple[QuantizedIO, list[str]]:
    """Remove the conversions between floats and codes at inputs and outputs, in place.

    Names of inputs and outputs stay; their types become those of the codes, and the file's metadata
    holds their grids.

    Args:
        emitted: a QDQ or QOperator model of the plan.
        plan: frozen.

    Returns:
        The grids, and one sentence for each input and output that stays float.
    """
    graph = emitted.graph
    inputs, outputs, notes = {}, {}, []
    for value in graph.inputs:
        params = _quantize_input(value, plan)
        if params is not None:
            inputs[name_of(value)] = params
        elif value.dtype == ir.DataType.FLOAT:
            notes.append(f'input "{value.name}" stays float: not only integer layers read it')
    for index, value in enumerate(graph.outputs):
        name = name_of(value)
        params = _quantize_output(graph, index, plan)
        if params is not None:
            outputs[name] = params
        elif value.dtype == ir.DataType.FLOAT:
            notes.append(f'output "{name}" stays float: no integer layer writes it')
    for name, initializer in list(graph.initializers.items()):
        if not initializer.uses() and not initializer.is_graph_output():
            del graph.initializers[name]
    io = QuantizedIO(inputs, outputs)
    emitted.metadata_props[KEY] = json.dumps(io.described(), sort_keys=True)
    return io, notes


def _quantize_input(value: ir.Value, plan: QuantPlan) -> QuantParams | None:
    """Remove the QuantizeLinear behind an input and return its grid.

    None where another node reads the input: it stays float.
    """
    readers = [node for node, _ in value.uses()]
    params = plan.params(name_of(value))
    if params is None or value.is_graph_output() or not readers:
        return None
    if any(node.op_type != "QuantizeLinear" for node in readers):
        return None
    for node in readers:
        codes = node.outputs[0]
        if codes.is_graph_output():
            return None
        value.type = codes.type
        ir.convenience.replace_all_uses_with(codes, value)
        node.graph.remove(node, safe=True)  # type: ignore[union-attr]
    return params


def _quantize_output(graph: ir.Graph, index: int, plan: QuantPlan) -> QuantParams | None:
    """Make the codes in front of a last DequantizeLinear the output, and return its grid.

    None where no DequantizeLinear writes the output: it stays float.
    """
    value = graph.outputs[index]
    node, name = value.producer(), name_of(value)
    params = plan.params(name)
    if params is None or node is None or node.op_type != "DequantizeLinear":
        return None
    codes = node.inputs[0]
    if codes is None or codes.producer() is None or codes.is_graph_output():
        return None
    graph.outputs[index] = codes
    if value.uses() or value.is_graph_output():
        value.name = f"{name}_dequantized"
    else:
        graph.remove(node, safe=True)
    codes.name = name
    return params
