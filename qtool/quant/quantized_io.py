"""Files whose inputs or outputs are codes: how their users turn values into codes and back.

The file itself says it, as JSON under ``qtool.io`` in its metadata, so that whoever runs it needs
nothing else: ``codes = clip(round(value / scale) + zero_point, low, high)``, rounding half to even,
and ``value = (code - zero_point) * scale``.
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
    """Names of inputs and of outputs that are codes -> their grids, one scale each."""

    inputs: Mapping[str, QuantParams] = field(default_factory=dict)
    outputs: Mapping[str, QuantParams] = field(default_factory=dict)

    def feeds(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch as the file wants it: inputs that are codes quantized, others as they are."""
        found = dict(batch)
        for name, params in self.inputs.items():
            if name in found:
                codes = quantize(np.asarray(found[name], np.float32), params)
                found[name] = codes.astype(params.spec.container)
        return found

    def values(self, name: str, array: np.ndarray) -> np.ndarray:
        """What an output of the file means: codes dequantized, floats as they are."""
        params = self.outputs.get(name)
        if params is None:
            return array
        return np.asarray(dequantize(array.astype(np.float32), params), np.float32)

    def described(self) -> dict[str, Any]:
        """As metadata and report hold it."""
        return {
            kind: {name: _described(params) for name, params in grids.items()}
            for kind, grids in (("inputs", self.inputs), ("outputs", self.outputs))
            if grids
        }


def _described(params: QuantParams) -> dict[str, Any]:
    return {
        "dtype": str(params.spec.container),
        "scale": float(params.scale),
        "zero_point": int(params.zero_point),
        "low": params.spec.qmin,
        "high": params.spec.qmax,
    }


def read_quantized_io(metadata: Mapping[str, str]) -> QuantizedIO:
    """The ends of a file by its metadata; none where it was not written with codes."""
    found = json.loads(metadata.get(KEY, "{}"))
    return QuantizedIO(
        *(
            {name: _grid(each) for name, each in found.get(kind, {}).items()}
            for kind in ("inputs", "outputs")
        )
    )


def _grid(found: Mapping[str, Any]) -> QuantParams:
    low, high = found["low"], found["high"]
    signed, bits = low < 0, (high - min(low, 0)).bit_length()
    # A grid that leaves its lowest code out is a symmetric one.
    spec = QuantSpec(bits, signed, symmetric=signed and low == -high)
    scale, zero = np.asarray(found["scale"], np.float32), np.asarray(found["zero_point"], np.int32)
    return QuantParams(spec, scale, zero)
