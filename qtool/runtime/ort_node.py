"""Run one node that the operator table lacks in ONNX Runtime: on the CPU, without gradient."""

from collections.abc import Hashable, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import UnsupportedError
from qtool.runtime.ort_options import IR_VERSION
from qtool.runtime.tensors import T, from_numpy

Sessions = MutableMapping[Hashable, Any]

# Types that torch and numpy share.
_PLAIN = {
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
}


def _array(tensor: T, value: ir.Value, node: ir.Node) -> np.ndarray:
    in_wider_type = value.dtype is not None and value.dtype.bitwidth < 8
    if tensor.dtype not in _PLAIN or in_wider_type:
        kind = value.dtype.name if in_wider_type and value.dtype else str(tensor.dtype)
        raise UnsupportedError(
            f"node {node.name!r} ({node.op_type}): no torch function computes it, and {kind} "
            "values cannot be passed to ONNX Runtime; convert the model to float32"
        )
    return tensor.detach().cpu().numpy()


def _feed(data: Any, value: ir.Value, node: ir.Node) -> Any:
    if isinstance(data, list):
        return [_array(t, value, node) for t in data]
    return _array(data, value, node)


def _kind(feed: Any, value: ir.Value) -> ir.TypeProtocol:
    if not isinstance(feed, list):
        return ir.TensorType(ir.DataType.from_numpy(feed.dtype))
    if not feed and value.type is not None:
        return value.type
    first = feed[0].dtype if feed else np.dtype(np.float32)
    return ir.SequenceType(ir.TensorType(ir.DataType.from_numpy(first)))


def _from_ort(result: Any) -> Any:
    if isinstance(result, list):
        return [from_numpy(np.asarray(r)) for r in result]
    return from_numpy(np.asarray(result))


def _session(node: ir.Node, model: ir.Model, kinds: dict[str, ir.TypeProtocol]) -> Any:
    """Create a session on a graph whose only node is ``node``, as the model file holds it."""
    import onnxruntime as ort

    inputs = [ir.Value(name=name, type=kind) for name, kind in kinds.items()]
    outputs = [ir.Value(name=o.name, type=o.type) for o in node.outputs if o.name]
    graph = ir.Graph(
        inputs, outputs, nodes=[], opset_imports=dict(model.opset_imports), name="one_node"
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=min(model.ir_version, IR_VERSION)))
    proto.graph.node.append(
        ir.to_proto(node)
    )  # a proto names values: those that subgraphs capture resolve
    for function in model.functions.values():
        proto.functions.append(ir.to_proto(function))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_node(
    node: ir.Node,
    inputs: Sequence[Any],
    values: Sequence[ir.Value | None],
    model: ir.Model,
    sessions: Sessions,
) -> list[Any]:
    """Compute one node (with its subgraphs) in ONNX Runtime.

    Args:
        node: the node; its value names are the session's.
        inputs: a tensor, a list of tensors or None for each of ``values``.
        values: the node's inputs, then the outer values its subgraphs read.
        model: contains the node; gives opsets, IR version and functions.
        sessions: cache between calls, by node and input types.

    Returns:
        One CPU tensor (or list of tensors) for each output, None for those without a name.

    Raises:
        UnsupportedError: an input's type cannot be passed to ONNX Runtime.
    """
    feeds: dict[str, Any] = {}
    kinds: dict[str, ir.TypeProtocol] = {}
    for data, value in zip(inputs, values, strict=True):
        if value is None or data is None or not value.name:
            continue
        feeds[value.name] = _feed(data, value, node)
        kinds[value.name] = _kind(feeds[value.name], value)
    key = (id(node), tuple((name, str(kind)) for name, kind in kinds.items()))
    if key not in sessions:
        sessions[key] = _session(node, model, kinds)
    names = [o.name for o in node.outputs if o.name]
    results = dict(zip(names, sessions[key].run(names, feeds), strict=True))
    return [_from_ort(results[o.name]) if o.name else None for o in node.outputs]
