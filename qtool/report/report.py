"""The report as data: report.json, written and read."""

import json
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator

from qtool.errors import RecipeError
from qtool.report.latency_schema import Latency
from qtool.report.layer_schema import Layer, OutputQuality
from qtool.report.schema import (
    Accuracy,
    Data,
    DataPart,
    Finding,
    Gate,
    IntegerOnly,
    Kernels,
    ModelPart,
    OutputPart,
    Parity,
    Part,
    PtqStep,
    Size,
    Stage,
    Verdict,
)
from qtool.report.search_schema import SearchPart, SearchPoint, Sensitivity
from qtool.report.sparsity_schema import SparsityPart

__all__ = [
    "Accuracy",
    "Data",
    "DataPart",
    "Finding",
    "Gate",
    "IntegerOnly",
    "Kernels",
    "Latency",
    "Layer",
    "ModelPart",
    "OutputPart",
    "OutputQuality",
    "Parity",
    "Part",
    "PtqStep",
    "Report",
    "SearchPart",
    "SearchPoint",
    "Sensitivity",
    "Size",
    "SparsityPart",
    "Stage",
    "Verdict",
]

SCHEMA = 1
NUMBERS = re.compile(r"(?<=\[)\n(?:\s+[-+.\deE]+,?\n)+\s*(?=\])")
"""The inside of a list of numbers; a line break in JSON is never part of a string."""
ENVIRONMENT_ORDER = ("python", "torch", "onnxruntime", "cpu", "isa")


class Report(Part):
    """The content of report.json. Keys without a value are absent; a NaN is refused.

    `passed` alone may be null: the run is not judged, and the verdict says why.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    qtool: str
    command: str
    seed: int
    passed: bool | None
    verdict: Verdict | None = None
    model: ModelPart
    output: OutputPart
    data: Data = Field(default_factory=Data)
    accuracy: Accuracy | None = None
    size: Size | None = None
    sparsity: SparsityPart | None = None
    latency: Latency | None = None
    parity: Parity | None = None
    kernels: Kernels | None = None
    layers: list[Layer] = Field(default_factory=list)
    outputs: list[OutputQuality] | None = None
    ptq: list[PtqStep] | None = None
    sensitivity: list[Sensitivity] | None = None
    search: SearchPart | None = None
    stages: list[Stage] = Field(default_factory=list)
    diagnosis: list[Finding] | None = None
    gates: list[Gate] = Field(default_factory=list)
    environment: dict[str, str | int | list[str]] = Field(default_factory=dict)

    @field_validator("environment")
    @classmethod
    def _ordered(cls, facts: dict[str, str | int | list[str]]) -> dict[str, str | int | list[str]]:
        first = [key for key in ENVIRONMENT_ORDER if key in facts]
        return {key: facts[key] for key in [*first, *sorted(facts.keys() - set(first))]}

    def to_json(self) -> str:
        """Return report.json: two-space indent, lists of numbers in a line, a final newline.

        Keys stand in the schema's order.
        """
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.passed is None:
            data = {key: data.get(key) for key in self._keys() if key in data or key == "passed"}
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return NUMBERS.sub(lambda match: " ".join(match[0].split()), text)

    @classmethod
    def json_schema(cls) -> dict[str, object]:
        """Return the JSON schema of report.json, as it is written and read."""
        schema = cls.model_json_schema(by_alias=True)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @classmethod
    def _keys(cls) -> list[str]:
        """Return the keys of report.json in order."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def read(cls, place: str | Path) -> Self:
        """Read a report.json, or the one in a run folder.

        Args:
            place: the file or the folder.

        Raises:
            RecipeError: there is none, it is damaged, or another schema wrote it.
        """
        path = Path(place)
        path = path / "report.json" if path.is_dir() else path
        try:
            if not path.exists():
                raise RecipeError(
                    f"{path}: no such file; expected a run folder or its report.json "
                    "(qtool ptq and qtool qat write one)"
                )
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(
                f"{path}: cannot be read ({error.strerror}); check the path and its rights"
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise _damaged(path, f"is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise _damaged(path, f"holds a {type(data).__name__}, expected an object")
        if data.get("schema") != SCHEMA:
            raise RecipeError(
                f"{path}: schema {data.get('schema')!r}, expected {SCHEMA}; "
                "read it with the qtool that wrote it, or run again with this one"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _damaged(path, _first_problem(error)) from error


def _damaged(path: Path, what: str) -> RecipeError:
    return RecipeError(f"{path}: {what}; the report is damaged: run again to write it anew")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in problem["loc"])
    more = error.error_count() - 1
    return f"at {where}: {problem['msg']}" + (f" (and {more} more)" if more else "")
