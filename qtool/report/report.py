"""The report as data (report.json), the gates of a recipe, and the verdict."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import Field, ValidationError, field_validator

from qtool.errors import RecipeError, suggest
from qtool.report.schema import (
    Accuracy,
    Data,
    DataPart,
    Gate,
    IntegerOnly,
    Kernels,
    Latency,
    Layer,
    ModelPart,
    OutputPart,
    OutputQuality,
    Parity,
    Part,
    PtqStep,
    Sensitivity,
    Size,
    Stage,
)

__all__ = [
    "Accuracy",
    "Data",
    "DataPart",
    "Gate",
    "IntegerOnly",
    "Kernels",
    "Latency",
    "Layer",
    "Level",
    "ModelPart",
    "OutputPart",
    "OutputQuality",
    "Parity",
    "Part",
    "PtqStep",
    "Report",
    "Sensitivity",
    "Size",
    "Stage",
    "check_gates",
    "parity_gates",
    "unit_word",
    "verdict",
]

SCHEMA = 1
WARN_DROP = 1.0
"""Points of drop above which a run without a max_drop gate gets a warning."""
ENVIRONMENT_ORDER = ("python", "torch", "onnxruntime", "cpu", "isa")

Level: TypeAlias = Literal["passed", "warning", "not proven", "failed"]


class Report(Part):
    """The content of report.json. Keys without a value are absent; a NaN is refused."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    qtool: str
    command: str
    seed: int
    passed: bool
    model: ModelPart
    output: OutputPart
    data: Data = Field(default_factory=Data)
    accuracy: Accuracy | None = None
    size: Size | None = None
    latency: Latency | None = None
    parity: Parity | None = None
    kernels: Kernels | None = None
    layers: list[Layer] = Field(default_factory=list)
    outputs: list[OutputQuality] | None = None
    ptq: list[PtqStep] | None = None
    sensitivity: list[Sensitivity] | None = None
    stages: list[Stage] = Field(default_factory=list)
    gates: list[Gate] = Field(default_factory=list)
    environment: dict[str, str | int | list[str]] = Field(default_factory=dict)

    @field_validator("environment")
    @classmethod
    def _ordered(cls, facts: dict[str, str | int | list[str]]) -> dict[str, str | int | list[str]]:
        first = [key for key in ENVIRONMENT_ORDER if key in facts]
        return {key: facts[key] for key in [*first, *sorted(facts.keys() - set(first))]}

    def to_json(self) -> str:
        """Return report.json: two-space indent, keys in the schema's order, a final newline."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

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


def check_gates(
    gates: Mapping[str, float | None],
    accuracy: Accuracy | None,
    size: Size | None,
    latency: Latency | None,
) -> list[Gate]:
    """Compare each gate of the recipe with the measured value; a value on the limit passes.

    Args:
        gates: limits by name (max_drop, min_compression, min_speedup); None means not set.
        accuracy: its drop counts as it is, without the interval (see `verdict`).
        size: of both files.
        latency: of both files.

    Raises:
        RecipeError: an unknown gate, or one whose value was not measured.
    """
    measured = {
        "max_drop": (accuracy.drop if accuracy else None, "needs an evaluate section with labels"),
        "min_compression": (size.compression if size else None, "needs the size of both files"),
        "min_speedup": (latency.speedup if latency else None, "needs a latency measurement"),
    }
    checked = []
    for name, limit in gates.items():
        if name not in measured:
            raise RecipeError(
                f"gates.{name}: unknown gate{suggest(name, measured)}; known: {', '.join(measured)}"
            )
        if limit is None:
            continue
        value, need = measured[name]
        if value is None:
            raise RecipeError(f"gates.{name}: {limit:g} cannot be checked, as it {need}; add it")
        passed = value <= limit if name.startswith("max_") else value >= limit
        checked.append(Gate(name=name, limit=limit, value=value, passed=passed))
    return checked


def parity_gates(report: Report) -> list[Gate]:
    """Return the parity gates of a report; none where parity was not measured.

    None as well where the report lists them among its gates, so that they are shown once.
    """
    if report.parity is None or any(gate.name.startswith("parity_") for gate in report.gates):
        return []
    return report.parity.gates


def verdict(report: Report) -> tuple[Level, str]:
    """Return the level, and one sentence about the gates and the drop.

    "failed" follows `passed`; "not proven" where the max_drop limit lies inside the drop's 95 %
    interval; "warning" where nothing limits the drop and it is above one point.
    """
    drop = report.accuracy.drop if report.accuracy else None
    limit = next((gate for gate in report.gates if gate.name == "max_drop"), None)
    open_question = limit is not None and _inside_interval(limit.limit, report.accuracy)
    if not report.passed:
        return "failed", _failure(report, open_question)
    if limit is not None and open_question and report.accuracy and report.accuracy.drop_ci95:
        lo, hi = report.accuracy.drop_ci95
        return "not proven", (
            f"All gates pass, but the max_drop limit {limit.limit:g} lies inside the drop's 95 % "
            f"interval {lo:.2f} to {hi:.2f}: more evaluation samples narrow the interval."
        )
    if limit is None and drop is not None and drop > WARN_DROP:
        return "warning", (
            f"The drop is {drop:.2f} {unit_word(report.accuracy)} and no max_drop gate limits it."
        )
    count = len(report.gates)
    if not count:
        return "passed", "No gate was set" + _closing(report, drop)
    lead = {1: "The gate passes", 2: "Both gates pass"}.get(count, f"All {count} gates pass")
    return "passed", lead + _closing(report, drop)


def unit_word(accuracy: Accuracy | None) -> str:
    """Return the unit of a difference in the metric: points for "%", else the metric's own."""
    unit = accuracy.unit if accuracy else None
    return "points" if unit in (None, "%") else str(unit)


def _inside_interval(limit: float, accuracy: Accuracy | None) -> bool:
    """Return whether the interval has drops on both sides of the limit; on it is within it."""
    if accuracy is None or accuracy.drop_ci95 is None:
        return False
    lo, hi = accuracy.drop_ci95
    return lo <= limit < hi


def _failure(report: Report, open_question: bool) -> str:
    failed = [gate for gate in [*report.gates, *parity_gates(report)] if not gate.passed]
    if not failed:
        return "The run did not pass, though every gate listed passes: see the notes of its stages."
    listed = "; ".join(f"{gate.name} {gate.value:.4g} (limit {gate.limit:g})" for gate in failed)
    doubt = " The max_drop limit lies inside the drop's 95 % interval." if open_question else ""
    return f"{'Gate' if len(failed) == 1 else 'Gates'} failed: {listed}.{doubt}"


def _closing(report: Report, drop: float | None) -> str:
    if drop is None:
        return "; the drop was not measured."
    return f"; the drop is {drop:.2f} {unit_word(report.accuracy)}."


def _damaged(path: Path, what: str) -> RecipeError:
    return RecipeError(f"{path}: {what}; the report is damaged: run again to write it anew")


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in problem["loc"])
    more = error.error_count() - 1
    return f"at {where}: {problem['msg']}" + (f" (and {more} more)" if more else "")
