"""The recipe's budget: what mixed precision may spend, and the widths it chooses from."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from qtool.recipe.choice import Choice, NamedChoice
from qtool.recipe.error_messages import describe
from qtool.recipe.sections.gates import Bytes
from qtool.recipe.sections.network import Part

_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")
_PAIR = re.compile(r"^([1-9]|1[0-6])/([2-9]|1[0-6])$")

SIZES = ("weights", "bytes", "bits")
"""Limits that only the widths of weights change."""
LIMITS = (*SIZES, "bops", "latency", "max_drop")


def _percent(value: Any) -> Any:
    match = _PERCENT.match(value) if isinstance(value, str) else None
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError(f"found {describe(value)}, expected a share such as 18%")
    return value


def _way(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 16
    if whole or value == "float" or (isinstance(value, str) and _PAIR.match(value)):
        return value
    raise ValueError(
        f"found {describe(value)}, expected bits of weights (4), of weights and activations "
        '("4/8"), or float'
    )


Percent = Annotated[
    str,
    BeforeValidator(_percent),
    WithJsonSchema({"type": "string", "pattern": _PERCENT.pattern}),
]
Way = Annotated[
    int | str,
    BeforeValidator(_way),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 16},
                {"type": "string", "pattern": _PAIR.pattern},
                {"const": "float"},
            ]
        }
    ),
]


class Budget(Part):
    """Limits of mixed precision; several hold together. Widths are chosen site by site."""

    weights: Percent | None = None
    """Bytes of the weights' codes, as a share of the float weights: 18%."""
    bytes: Bytes | None = None
    """Bytes of the file: 1.5MB."""
    bits: Annotated[float, Field(gt=0, le=16, strict=False)] | None = None
    """Mean bits of a weight."""
    bops: Percent | None = None
    """Multiply-accumulates times the bits of both operands, 32 of floats, as a share of those at
    8/8 bits."""
    latency: Percent | None = None
    """Time of one sample on this machine, as a share of the float file's."""
    max_drop: Annotated[float, Field(ge=0, strict=False)] | None = None
    """Drop of the metric on calibration samples, in its unit; with no other limit the smallest file
    that keeps it is searched."""
    among: Annotated[tuple[Way, ...], Field(strict=False)] | None = None
    """Widths to choose from: 4 is weights of 4 bits, "4/8" weights and activations, or float."""
    method: NamedChoice = Choice(name="integer_program")
    """How widths are chosen: a name of `qtool list budget_methods`."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> "Budget":
        if all(getattr(self, name) is None for name in LIMITS):
            raise ValueError(f"found no limit, expected one of {', '.join(LIMITS)}")
        return self

    def share(self, name: str) -> float | None:
        """Return a limit that is a percentage as a number from 0 to 1; None where it is absent."""
        text = getattr(self, name)
        return None if text is None else float(text.rstrip("% ")) / 100


def widths_of(way: int | str) -> tuple[int | None, int | None]:
    """Return the bits of weights and activations of a way; None: those of the recipe.

    Args:
        way: an item of ``among`` other than float.
    """
    if isinstance(way, int):
        return way, None
    weights, activations = way.split("/")
    return int(weights), int(activations)
