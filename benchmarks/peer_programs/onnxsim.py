"""Quantize with onnxsim: the whole graph, with equalization, AdaRound, GPTQ and bias correction."""

import onnx
import onnxsim
from onnxsim.full_qdq import quantize_full_qdq
from onnxsim.quark_weight_rounding import adaround_int8, gptq_int8

from benchmarks.peer_programs.task import Task, outer_weights, run_program


def default(task: Task) -> None:
    """Leave every option as it is: UINT8 activations by minimum and maximum, per channel."""
    onnx.save(quantize_full_qdq(onnx.load(task.source), task.feeds), task.target)


def equalized(task: Task) -> None:
    """Equalize layers, and correct biases of the quantized graph."""
    model = onnxsim.cross_layer_equalize(onnx.load(task.source))
    quantized = quantize_full_qdq(model, task.feeds)
    onnx.save(onnxsim.correct_bias(model, quantized, task.feeds), task.target)


def adaround(task: Task) -> None:
    """Equalize layers, and learn the rounding of the INT8 weights layer by layer."""
    model = onnxsim.cross_layer_equalize(onnx.load(task.source))
    quantized = quantize_full_qdq(model, task.feeds)
    onnx.save(adaround_int8(model, quantized, task.feeds)[0], task.target)


def gptq4(task: Task) -> None:
    """Equalize layers, and round weights to 4 bits in INT8 by GPTQ, but for the ends."""
    model = onnxsim.cross_layer_equalize(onnx.load(task.source))
    quantized = quantize_full_qdq(model, task.feeds)
    lower, _ = gptq_int8(model, quantized, task.feeds, bits=4, per_channel=True)
    _restore(lower, quantized, outer_weights(model))
    onnx.save(lower, task.target)


def _restore(changed: onnx.ModelProto, before: onnx.ModelProto, weights: list[str]) -> None:
    """Store these weights as they were before; GPTQ stores its scales under other names."""
    codes = tuple(f"{name}/" for name in weights)
    old = {n.output[0]: n for n in before.graph.node if n.op_type == "DequantizeLinear"}
    old = {output: node for output, node in old.items() if node.input[0].startswith(codes)}
    if len(old) != len(weights):
        raise ValueError(f"the quantized weights of {weights} are not found")
    for node in changed.graph.node:
        if node.output[0] in old:
            node.CopyFrom(old[node.output[0]])
    names = {name for node in old.values() for name in node.input}
    kept = [t for t in changed.graph.initializer if t.name not in names]
    kept += [t for t in before.graph.initializer if t.name in names]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)


if __name__ == "__main__":
    run_program((default, equalized, adaround, gptq4), ("onnxsim", "onnxruntime", "onnx"))
