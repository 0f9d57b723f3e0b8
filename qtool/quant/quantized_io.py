"""Conversion between values and codes for files whose inputs or outputs are codes.

The file's metadata holds the grids as JSON under ``qtool.io``; a caller needs only the file:

    codes = clip(round_half_even(value / scale) + zero_point, low, high)
    value = (code - zero_point) * scale
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qtool.quant.primitives import QuantParams, QuantSpec, dequantize, quantize

KEY = "qtool.io"


@dataclass(frozen=True)
class QuantizedIO:
    """The grids of a file's inputs and outputs that are codes, by name; one scale each."""

    inputs: Mapping[str, QuantParams] = field(default_factory=dict)
    outputs: Mapping[str, QuantParams] = field(default_factory=dict)

    def feeds(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Quantize the inputs of a batch that the file reads as codes; return all inputs."""
        feeds = dict(batch)
        for name, params in self.inputs.items():
            if name in feeds:
                codes = quantize(np.asarray(feeds[name], np.float32), params)
                feeds[name] = codes.astype(params.spec.container)
        return feeds

    def values(self, name: str, array: np.ndarray) -> np.ndarray:
        """Dequantize an output of the file; return a float output as it is."""
        params = self.outputs.get(name)
        if params is None:
            return array
        return np.asarray(dequantize(array.astype(np.float32), params), np.float32)

    def described(self) -> dict[str, Any]:
        """Return the grids as a JSON-compatible dict, for the file's metadata and the report."""
        return {
            kind: {name: _to_json(params) for name, params in grids.items()}
            for kind, grids in (("inputs", self.inputs), ("outputs", self.outputs))
            if grids
        }


def _to_json(params: QuantParams) -> dict[str, Any]:
    return {
        "dtype": str(params.spec.container),
        "scale": float(params.scale),
        "zero_point": int(params.zero_point),
        "low": params.spec.qmin,
        "high": params.spec.qmax,
    }


def read_quantized_io(metadata: Mapping[str, str]) -> QuantizedIO:
    """Read the grids of inputs and outputs from a file's metadata; empty for a float interface."""
    document = json.loads(metadata.get(KEY, "{}"))
    inputs, outputs = (
        {name: _from_json(entry) for name, entry in document.get(kind, {}).items()}
        for kind in ("inputs", "outputs")
    )
    return QuantizedIO(inputs, outputs)


def _from_json(entry: Mapping[str, Any]) -> QuantParams:
    low, high = entry["low"], entry["high"]
    signed, bits = low < 0, (high - min(low, 0)).bit_length()
    # Only symmetric grids exclude the lowest code of their container.
    spec = QuantSpec(bits, signed, symmetric=signed and low == -high)
    scale, zero = np.asarray(entry["scale"], np.float32), np.asarray(entry["zero_point"], np.int32)
    return QuantParams(spec, scale, zero)
