"""Quantize with AIMET: its defaults, cross-layer equalization, SeqMSE and AdaRound."""

import aimet_onnx
import onnx
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.cross_layer_equalization import equalize_model

from benchmarks.peer_programs.task import Task, outer_weights, run_program

# Samples in one call; its calibration and its steps run the network once for each.
BATCH = 32
# AIMET's documentation advises 15000 below 8 bits.
ADAROUND_ITERATIONS = 15000


def default(task: Task) -> None:
    """Fold batch norms and calibrate by minimum and maximum: INT8, one scale per channel."""
    model = onnx.load(task.source)
    fold_all_batch_norms_to_weight(model)
    _save(_calibrated(_simulated(model, task), task), task)


def equalized(task: Task) -> None:
    """Equalize layers; choose ranges by the ratio of signal to quantization noise."""
    model = onnx.load(task.source)
    equalize_model(model)
    sim = _simulated(model, task, quant_scheme="tf_enhanced")
    _save(_calibrated(sim, task), task)


def seqmse(task: Task) -> None:
    """Equalize layers; choose the INT4 weights' ranges one layer after the other by SeqMSE."""
    sim = _four_bits(task)
    aimet_onnx.apply_seq_mse(sim, task.batches(BATCH))
    _save(_calibrated(sim, task), task)


def adaround(task: Task) -> None:
    """Equalize layers; learn the INT4 weights' rounding layer by layer."""
    sim = _four_bits(task)
    aimet_onnx.apply_adaround(sim, task.batches(BATCH), num_iterations=ADAROUND_ITERATIONS)
    _save(_calibrated(sim, task), task)


def _simulated(
    model: onnx.ModelProto, task: Task, **options: str
) -> aimet_onnx.QuantizationSimModel:
    threads = {"intra_op_num_threads": task.threads}
    return aimet_onnx.QuantizationSimModel(
        model, dummy_input=task.feeds[0], session_options_kwargs=threads, **options
    )


def _four_bits(task: Task) -> aimet_onnx.QuantizationSimModel:
    """Return the equalized network with INT4 weights, the first and the last layer's INT8."""
    model = onnx.load(task.source)
    equalize_model(model)
    ends = outer_weights(model)
    sim = _simulated(model, task, param_type="int4", activation_type="int8")
    sim.set_tensor_precision(ends, "int8")
    return sim


def _calibrated(
    sim: aimet_onnx.QuantizationSimModel, task: Task
) -> aimet_onnx.QuantizationSimModel:
    sim.compute_encodings(task.batches(BATCH))
    return sim


def _save(sim: aimet_onnx.QuantizationSimModel, task: Task) -> None:
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), task.target)


if __name__ == "__main__":
    run_program((default, equalized, seqmse, adaround), ("aimet-onnx", "onnxruntime", "onnx"))
