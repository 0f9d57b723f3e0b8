"""Inputs and outputs as codes: no QuantizeLinear at the entry, no DequantizeLinear at the exit."""

import json

import onnx_ir as ir

from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams
from qtool.quant.quantized_io import KEY, QuantizedIO


def quantize_io(emitted: ir.Model, plan: QuantPlan) -> tuple[QuantizedIO, list[str]]:
    """Let a file read and write codes where it would convert, in place.

    Names of inputs and outputs stay; their types become those of the codes, and the file's metadata
    says on which grids they are.

    Args:
        emitted: a QDQ or QOperator file of the plan.
        plan: frozen.

    Returns:
        The grids, and a sentence for each input and output that stays as it is.
    """
    graph = emitted.graph
    inputs, outputs, notes = {}, {}, []
    for value in graph.inputs:
        params = _open_input(value, plan)
        if params is not None:
            inputs[value.name or ""] = params
        elif value.dtype == ir.DataType.FLOAT:
            notes.append(f'input "{value.name}" stays float: not only integer layers read it')
    for index, value in enumerate(graph.outputs):
        name = value.name or ""
        params = _open_output(graph, index, plan)
        if params is not None:
            outputs[name] = params
        elif value.dtype == ir.DataType.FLOAT:
            notes.append(f'output "{name}" stays float: no integer layer writes it')
    for name, initializer in list(graph.initializers.items()):
        if not initializer.uses() and not initializer.is_graph_output():
            del graph.initializers[name]
    ends = QuantizedIO(inputs, outputs)
    emitted.metadata_props[KEY] = json.dumps(ends.described(), sort_keys=True)
    return ends, notes


def _open_input(value: ir.Value, plan: QuantPlan) -> QuantParams | None:
    """Drop the QuantizeLinear behind an input that nothing else reads; the input's grid."""
    readers = [node for node, _ in value.uses()]
    params = plan.params(value.name or "")
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


def _open_output(graph: ir.Graph, index: int, plan: QuantPlan) -> QuantParams | None:
    """Return the codes that a DequantizeLinear makes an output of; the output's grid."""
    value = graph.outputs[index]
    node, name = value.producer(), value.name or ""
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
