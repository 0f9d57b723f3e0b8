"""Conversion of float16 and bfloat16 models to float32, which represents their weights exactly."""

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

HALF_TYPES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_WAS_BFLOAT16 = "qtool.bfloat16"


def was_bfloat16(model: ir.Model) -> bool:
    """Return whether :func:`widen` converted a bfloat16 model.

    ONNX Runtime has no bfloat16 kernels on the CPU, so the original file cannot be run there.
    """
    return _WAS_BFLOAT16 in model.meta


def widen(model: ir.Model) -> int:
    """Convert all 16-bit floats of a model to float32, in place.

    Inputs and outputs of type float16 keep their type, and a Cast is added to each. Those of type
    bfloat16 become float32, since neither numpy nor ONNX Runtime supports bfloat16.

    Args:
        model: with inferred types.

    Returns:
        The number of converted initializers, at least 1 if anything was changed, else 0.
    """
    graphs = [model.graph, *model.graph.subgraphs()]
    values = {id(v): v for g in graphs for v in (*g.inputs, *g.initializers.values())}
    values.update({id(v): v for node in model.graph.all_nodes() for v in node.outputs})
    half = [v for v in values.values() if v.dtype in HALF_TYPES]
    if not half:
        return 0
    if any(v.dtype == ir.DataType.BFLOAT16 for v in half):
        model.meta[_WAS_BFLOAT16] = True
    interface = (*model.graph.inputs, *model.graph.outputs)
    float16 = {v: ir.DataType.FLOAT16 for v in interface if v.dtype == ir.DataType.FLOAT16}
    done = 0
    for value in half:
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
            done += 1
        value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in model.graph.all_nodes():
        _widen_attributes(node)
    _add_interface_casts(model.graph, float16)
    return max(done, 1)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor in float32; a memory-mapped one is converted each time it is read."""
    name = tensor.name or ""

    def widened() -> ir.Tensor:
        wide = np.asarray(tensor.numpy()).astype(np.float32)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()  # unmap the pages; otherwise both forms would stay in memory
        return ir.Tensor(wide, name=name)

    if not isinstance(tensor, ir.ExternalTensor):
        return widened()
    return ir.LazyTensor(widened, dtype=ir.DataType.FLOAT, shape=tensor.shape, name=name)


def _widen_attributes(node: ir.Node) -> None:
    """Replace 16-bit types in the attributes of Cast, ConstantOfShape and random operators."""
    for key in ("to", "dtype"):
        attr = node.attributes.get(key)
        if attr is not None and attr.type == ir.AttributeType.INT and attr.value in HALF_TYPES:
            node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT.value)
    attr = node.attributes.get("value")
    if attr is not None and attr.type == ir.AttributeType.TENSOR and attr.value.dtype in HALF_TYPES:
        array = np.asarray(attr.value.numpy()).astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array))


def _add_interface_casts(graph: ir.Graph, dtypes: dict[ir.Value, ir.DataType]) -> None:
    """Add a Cast after inputs and before outputs so that they keep their types and names."""
    name = _unused_names(graph)
    for value, dtype in dtypes.items():
        if value.is_graph_input():
            to = ir.AttrInt64("to", ir.DataType.FLOAT.value)
            cast = ir.Node("", "Cast", [value], [to], name=name(f"{value.name}/widen"))
            out = cast.outputs[0]
            out.name, out.shape = name(f"{value.name}_float32"), value.shape
            out.type = ir.TensorType(ir.DataType.FLOAT)
            ir.convenience.replace_all_uses_with(value, out, replace_graph_outputs=False)
            cast.replace_input_with(0, value)
            value.type = ir.TensorType(dtype)
            graph.insert_before(graph[0], cast)
        elif value.is_graph_output():
            to = ir.AttrInt64("to", dtype.value)
            cast = ir.Node("", "Cast", [value], [to], name=name(f"{value.name}/narrow"))
            out, exported = cast.outputs[0], value.name
            out.shape, out.type = value.shape, ir.TensorType(dtype)
            value.name, out.name = name(f"{exported}_float32"), exported
            graph.append(cast)
            for index, old in enumerate(graph.outputs):
                if old is value:
                    graph.outputs[index] = out


def _unused_names(graph: ir.Graph) -> Callable[[str], str]:
    """Return a function that appends a number to a name until the graph does not have it.

    A model that this module has converted before, stored and loaded again has its names already.
    """
    graphs = (graph, *graph.subgraphs())
    taken = {v.name for g in graphs for v in (*g.inputs, *g.initializers.values())}
    for node in graph.all_nodes():
        taken.update((node.name, *(v.name for v in node.outputs)))

    def unused(base: str) -> str:
        numbered = (f"{base}_{k}" for k in itertools.count(1))
        name = next(n for n in itertools.chain([base], numbered) if n not in taken)
        taken.add(name)
        return name

    return unused
