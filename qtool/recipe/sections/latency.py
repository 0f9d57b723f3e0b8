"""The latency section of a recipe: runtimes, threads, batches and machine of the timed files."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from qtool.recipe.error_messages import describe
from qtool.recipe.sections.network import Part

# A host never begins with a hyphen, which ssh would read as an option.
_RUNNER = re.compile(r"^ssh:(?!-)[\w.@:\[\]-]+$", re.ASCII)
# A recipe runs no code of its own: on the other machine nothing but an interpreter is started.
_PYTHON = re.compile(r"^(?!-)([\w./+-]*/)?python[\d.]*$", re.ASCII)


def _list(value: Any) -> Any:
    """Return one value as a list of it."""
    return value if isinstance(value, list | tuple) else [value]


def _matching(pattern: "re.Pattern[str]", expected: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, str) and pattern.match(value):
            return value
        raise ValueError(f"found {describe(value)}, expected {expected}")

    return BeforeValidator(check)


Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1), BeforeValidator(_list)]


class Latency(Part):
    """The runtimes, threads and batches that both files are timed with, in turn."""

    runtimes: Annotated[
        tuple[str, ...], Field(strict=False, min_length=1), BeforeValidator(_list)
    ] = ("onnxruntime",)
    """Names of `qtool list runtimes`, or execution providers of the installed ONNX Runtime, such as
    OpenVINOExecutionProvider."""
    threads: Counts = (1,)
    """Threads that compute, one table row each."""
    batch: Counts | None = None
    """Samples of a run; absent: 1, or the size that the model fixes."""
    runner: (
        Annotated[
            str,
            _matching(_RUNNER, "ssh:HOST"),
            WithJsonSchema({"type": "string", "pattern": _RUNNER.pattern}),
        ]
        | None
    ) = None
    """ssh:HOST, another Linux machine with Python and onnxruntime; absent: this machine."""
    python: Annotated[
        str,
        _matching(_PYTHON, "python3, or the path of an interpreter"),
        WithJsonSchema({"type": "string", "pattern": _PYTHON.pattern}),
    ] = "python3"
    """The interpreter on that machine, such as venv/bin/python."""

    @property
    def host(self) -> str | None:
        """The machine as ssh takes it; None: this one."""
        return None if self.runner is None else self.runner.removeprefix("ssh:")
