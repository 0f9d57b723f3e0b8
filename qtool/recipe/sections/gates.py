"""The gates section of a recipe, and its sizes in bytes."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from qtool.recipe.error_messages import describe
from qtool.recipe.sections.network import Part

_BINARY = {10: ("k", "kib"), 20: ("m", "mib"), 30: ("g", "gib")}
# As in GNU coreutils: 2G is 2 GiB, 2GB are 2 * 10^9 bytes.
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
UNITS |= {unit: 2**power for power in (10, 20, 30) for unit in _BINARY[power]}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def read_bytes(value: Any) -> Any:
    """Return a size as whole bytes: 1.5MB is 1500000, 1M and 1MiB are 1048576; numbers stay.

    Args:
        value: of the recipe.

    Raises:
        ValueError: a text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value.strip())
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"found {describe(value)}, expected a size such as 1.5MB or 1500000")
    return round(float(match[1]) * UNITS[match[2].lower()])


Bytes = Annotated[
    int,
    BeforeValidator(read_bytes),
    Field(gt=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([bB]|[kKmMgG](i?[bB])?)$"},
            ]
        }
    ),
]
"""A size in bytes; in YAML also with a unit, such as 1.5MB or 2G."""


ACCURACY_GATES = ("max_drop", "min_accuracy", "max_regression")
"""Gates that need the metric's value on evaluation samples."""


class Gates(Part):
    """Limits that decide the exit code; an absent one is not checked."""

    max_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest accuracy drop, in percentage points; needs evaluate."""
    min_accuracy: float | None = None
    """Smallest value of the metric for the file; needs evaluate."""
    min_agreement: Annotated[float, Field(ge=0, le=100)] | None = None
    """Smallest share of samples, in %, for which file and float model choose the same class."""
    max_regression: Annotated[float, Field(ge=0)] | None = None
    """Largest loss against the file of an earlier run, in the metric's unit; needs --baseline."""
    min_compression: Annotated[float, Field(gt=0)] | None = None
    """Smallest ratio of float to quantized bytes."""
    max_bytes: Bytes | None = None
    """Largest file, such as 1.5MB."""
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    """Smallest ratio of float to quantized latency."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Largest latency of the file in milliseconds."""
    min_layer_sqnr: float | None = None
    """Smallest signal to quantization noise of any layer, in dB."""
