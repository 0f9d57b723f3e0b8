"""onnxruntime's own quantizer, as its documentation recommends it for CNNs and encoders on x86."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Batches(CalibrationDataReader):
    """Batches as onnxruntime reads them."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def prepare(model: Path, out: Path) -> Path:
    """Write what quant_pre_process makes of a model beside the file to write; return its path."""
    prepared = out.with_suffix(".pre.onnx")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    return prepared


def quantize(model: Path, batches: Iterator[dict[str, np.ndarray]], out: Path, **more: Any) -> None:
    """quant_pre_process, then quantize_static: QDQ, uint8 activations, int8 per-channel, MinMax."""
    quantize_prepared(prepare(model, out), batches, out, **more)


def quantize_prepared(
    prepared: Path, batches: Iterator[dict[str, np.ndarray]], out: Path, **more: Any
) -> None:
    """Quantize what :func:`prepare` wrote; ``more`` replaces options of quantize_static."""
    options: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "calibrate_method": CalibrationMethod.MinMax,
    }
    quantize_static(prepared, out, Batches(batches), **options | more)
