"""Quantize with AMD Quark: its presets for CPUs, and equalization with bias correction."""

import quark.onnx as quark
from quark.onnx.quantization.config.config import Config

from benchmarks.baseline import Batches
from benchmarks.peer_programs.task import Task, run_program


def default(task: Task) -> None:
    """Take the preset INT8_CNN_DEFAULT or INT8_TRANSFORMER_DEFAULT."""
    _quantize(task, _preset(task, "DEFAULT"))


def accurate(task: Task) -> None:
    """Take the preset INT8_CNN_ACCURATE or INT8_TRANSFORMER_ACCURATE: percentile, AdaRound."""
    _quantize(task, _preset(task, "ACCURATE"))


def equalized(task: Task) -> None:
    """Equalize layers, calibrate by percentile per channel, and correct biases."""
    weights = quark.Int8Spec(quant_granularity=quark.QuantGranularity.Channel)
    layers = quark.QLayerConfig(activation=quark.UInt8Spec(), weight=weights)
    steps = [quark.CLEConfig(), quark.BiasCorrectionConfig()]
    _quantize(task, quark.QConfig(global_config=layers, algo_config=steps))


def _preset(task: Task, name: str) -> Config:
    kind = "TRANSFORMER" if task.is_transformer else "CNN"
    return quark.QConfig.get_default_config(f"INT8_{kind}_{name}")


def _quantize(task: Task, config: Config | quark.QConfig) -> None:
    reader = Batches(iter(task.feeds))
    quark.ModelQuantizer(config).quantize_model(str(task.source), str(task.target), reader)


if __name__ == "__main__":
    run_program((default, accurate, equalized), ("amd-quark", "onnxruntime", "onnx"))
