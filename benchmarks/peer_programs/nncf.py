"""Quantize with NNCF's quantize: its defaults, and its accurate bias correction."""

from typing import Any

import nncf
import onnx

from benchmarks.peer_programs.task import Task, run_program


def default(task: Task, **options: Any) -> None:
    """Leave every option as it is, but read all samples and name the kind of network."""
    if task.is_transformer:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    model = nncf.quantize(
        onnx.load(task.source),
        nncf.Dataset(task.feeds),
        subset_size=len(task.feeds),
        **options,
    )
    onnx.save(model, task.target)


def accurate(task: Task) -> None:
    """Correct biases layer by layer, and quantize activations of mixed sign asymmetrically."""
    default(task, fast_bias_correction=False, preset=nncf.QuantizationPreset.MIXED)


if __name__ == "__main__":
    run_program((default, accurate), ("nncf", "onnxruntime", "onnx"))
