"""Quantize with onnxruntime's quantize_static: INT8 in two ways, and INT4 weights."""

from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_static

from benchmarks.baseline import Batches, prepare, quantize, quantize_prepared
from benchmarks.peer_programs.task import Task, outer_weights, run_program


def default(task: Task) -> None:
    """Leave every option as it is: INT8 activations and weights, one scale per tensor."""
    quantize_static(task.source, task.target, Batches(iter(task.feeds)))


def documented(task: Task) -> None:
    """Follow the documentation: prepared model, UINT8 activations, one scale per channel."""
    quantize(task.source, iter(task.feeds), task.target)


def w4a8(task: Task) -> None:
    """Round weights to INT4, those of the first and of the last layer to INT8."""
    prepared = prepare(task.source, task.target)
    model = onnx.load(prepared)
    overrides = {name: _int8_per_channel(model, name) for name in outer_weights(model)}
    quantize_prepared(
        prepared,
        iter(task.feeds),
        task.target,
        weight_type=QuantType.QInt4,
        extra_options={"TensorQuantOverrides": overrides},
    )


def _int8_per_channel(model: onnx.ModelProto, weight: str) -> list[dict[str, Any]]:
    """Return the option that stores a weight as INT8, one scale for each output channel."""
    user = next(node for node in model.graph.node if weight in node.input)
    transposed = any(a.name == "transB" and a.i for a in user.attribute)
    axis = 0 if user.op_type == "Conv" or transposed else 1
    return [{"quant_type": QuantType.QInt8, "axis": axis}]


if __name__ == "__main__":
    run_program((default, documented, w4a8), ("onnxruntime", "onnx"))
