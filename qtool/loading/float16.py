"""float16 and bfloat16 models in float32: their weights are exact there, and integers follow."""

import numpy as np
import onnx_ir as ir

LOW = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_WAS_BFLOAT16 = "qtool.bfloat16"


def was_bfloat16(model: ir.Model) -> bool:
    """Whether :func:`widen` found bfloat16, for which ONNX Runtime has no kernels on the CPU."""
    return _WAS_BFLOAT16 in model.meta


def widen(model: ir.Model) -> int:
    """Turn every 16-bit float of the graph into float32, in place.

    The graph's float16 inputs and outputs keep their type: a Cast stands at each border. Those of
    bfloat16, which neither numpy nor ONNX Runtime takes, become float32.

    Returns:
        How many initializers were widened; 0 means that nothing was changed.
    """
    graphs = [model.graph, *model.graph.subgraphs()]
    values = {id(v): v for g in graphs for v in (*g.inputs, *g.initializers.values())}
    values.update({id(v): v for node in model.graph.all_nodes() for v in node.outputs})
    low = [v for v in values.values() if v.dtype in LOW]
    if not low:
        return 0
    if any(v.dtype == ir.DataType.BFLOAT16 for v in low):
        model.meta[_WAS_BFLOAT16] = True
    outside = (*model.graph.inputs, *model.graph.outputs)
    borders = {v: ir.DataType.FLOAT16 for v in outside if v.dtype == ir.DataType.FLOAT16}
    done = 0
    for value in low:
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
            done += 1
        value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph.all_nodes():
        _widen_attributes(node)
    _keep_borders(model.graph, borders)
    return max(done, 1)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor in float32; one that lies in a file is widened anew each time it is read."""
    name = tensor.name or ""

    def widened() -> ir.Tensor:
        wide = np.asarray(tensor.numpy()).astype(np.float32)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()
        return ir.Tensor(wide, name=name)

    if not isinstance(tensor, ir.ExternalTensor):
        return widened()
    return ir.LazyTensor(widened, dtype=ir.DataType.FLOAT, shape=tensor.shape, name=name)


def _widen_attributes(node: ir.Node) -> None:
    """Types that a node names in its attributes: Cast, ConstantOfShape, random ops."""
    for key in ("to", "dtype"):
        attr = node.attributes.get(key)
        if attr is not None and attr.type == ir.AttributeType.INT and attr.value in LOW:
            node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT.value)
    attr = node.attributes.get("value")
    if attr is not None and attr.type == ir.AttributeType.TENSOR and attr.value.dtype in LOW:
        array = np.asarray(attr.value.numpy()).astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array))


def _keep_borders(graph: ir.Graph, borders: dict[ir.Value, ir.DataType]) -> None:
    for value, dtype in borders.items():
        if value.is_graph_input():
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", 1)], name=f"{value.name}/widen")
            out = cast.outputs[0]
            out.name, out.shape = f"{value.name}_float32", value.shape
            out.type = ir.TensorType(ir.DataType.FLOAT)
            ir.convenience.replace_all_uses_with(value, out, replace_graph_outputs=False)
            cast.replace_input_with(0, value)
            value.type = ir.TensorType(dtype)
            graph.insert_before(graph[0], cast)
        elif value.is_graph_output():
            to = ir.AttrInt64("to", dtype.value)
            cast = ir.Node("", "Cast", [value], [to], name=f"{value.name}/narrow")
            out, name = cast.outputs[0], value.name
            out.shape, out.type = value.shape, ir.TensorType(dtype)
            value.name, out.name = f"{name}_float32", name
            graph.append(cast)
            for index, old in enumerate(graph.outputs):
                if old is value:
                    graph.outputs[index] = out
