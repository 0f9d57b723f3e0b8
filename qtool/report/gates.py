"""The gates of a recipe: a table of limits, and the comparison with what was measured."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtool.errors import RecipeError, suggest
from qtool.report.latency_schema import Latency
from qtool.report.layer_schema import Layer
from qtool.report.schema import Accuracy, Gate, Size

if TYPE_CHECKING:
    from qtool.report.report import Report

BASELINE_NEED = "needs --baseline RUN, a run with the same metric on the same evaluation samples"


@dataclass(frozen=True)
class Measured:
    """The measurements of one run that gates are compared with; None where there is none.

    Attributes:
        accuracy: of both files.
        size: of both files.
        latency: of both files.
        layers: with their signal to noise; empty under `verify`, which has no plan.
        evaluation: digest of the evaluation samples.
        baseline: the report of an earlier run.
    """

    accuracy: Accuracy | None = None
    size: Size | None = None
    latency: Latency | None = None
    layers: tuple[Layer, ...] = ()
    evaluation: str | None = None
    baseline: "Report | None" = None

    @property
    def lowest_sqnr(self) -> float | None:
        """The signal to noise of the weakest layer in dB."""
        return min((each.sqnr_db for each in self.layers if each.sqnr_db is not None), default=None)

    @property
    def regression(self) -> float | None:
        """Points lost against the baseline's file; None where the two cannot be compared."""
        other = self.baseline
        own, before = self.accuracy, other.accuracy if other else None
        if own is None or before is None or other is None or own.metric != before.metric:
            return None
        part = other.data.evaluation
        if part is None or part.sha256 != self.evaluation:
            return None
        if own.quantized is None or before.quantized is None:
            return None
        lost = before.quantized - own.quantized
        return round(-lost if own.lower_is_better else lost, 6)


@dataclass(frozen=True)
class GateKind:
    """An entry of GATES; names that begin with max_ are upper limits.

    Attributes:
        measure: reads the value that the limit is compared with; None: it was not measured.
        need: the condition of the measurement, for messages.
        of_outputs: whether the value says how good the network's outputs are.
        whole: whether value and limit are whole numbers, which are shown in full.
        interval: field of Accuracy with the value's 95 % interval.
    """

    measure: Callable[[Measured], float | None]
    need: str
    of_outputs: bool = False
    whole: bool = False
    interval: str | None = None


def _of_accuracy(name: str) -> Callable[[Measured], float | None]:
    return lambda measured: getattr(measured.accuracy, name, None)


LABELS = "needs an evaluate section with labels"

GATES: dict[str, GateKind] = {
    "max_drop": GateKind(_of_accuracy("drop"), LABELS, of_outputs=True, interval="drop_ci95"),
    "min_accuracy": GateKind(
        _of_accuracy("quantized"), LABELS, of_outputs=True, interval="quantized_ci95"
    ),
    "min_agreement": GateKind(
        _of_accuracy("agreement"),
        "needs a first output with classes",
        of_outputs=True,
        interval="agreement_ci95",
    ),
    "max_regression": GateKind(lambda of: of.regression, BASELINE_NEED, of_outputs=True),
    "min_compression": GateKind(
        lambda of: of.size.compression if of.size else None, "needs the size of both files"
    ),
    "max_bytes": GateKind(
        lambda of: of.size.quantized_bytes if of.size else None,
        "needs the size of the file",
        whole=True,
    ),
    "min_speedup": GateKind(
        lambda of: of.latency.checked.speedup if of.latency else None, "needs a latency measurement"
    ),
    "max_latency_ms": GateKind(
        lambda of: of.latency.checked.quantized_ms if of.latency else None,
        "needs a latency measurement",
    ),
    "min_layer_sqnr": GateKind(
        lambda of: of.lowest_sqnr, "needs the layers of a plan, which a run of ptq or qat has"
    ),
}


def gate_number(gate: str, number: float, form: str = ".4g") -> str:
    """Format the value or the limit of a gate: 104,319 bytes, but 0.147 ms.

    Args:
        gate: its name.
        number: the value, or the limit.
        form: format of numbers that need not be whole.
    """
    kind = GATES.get(gate)
    return format(number, ",.0f" if kind is not None and kind.whole else form)


def check_gates(limits: Mapping[str, float | None], measured: Measured) -> list[Gate]:
    """Compare each gate of the recipe with the measured value; a value on the limit passes.

    A value counts as it is, without its interval (see :func:`unproven_gates`).

    Args:
        limits: by name; None means not set.
        measured: of the run.

    Raises:
        RecipeError: an unknown gate, or one whose value was not measured.
    """
    checked = []
    for name, limit in limits.items():
        if name not in GATES:
            raise RecipeError(
                f"gates.{name}: unknown gate{suggest(name, GATES)}; known: {', '.join(GATES)}"
            )
        if limit is None:
            continue
        value = GATES[name].measure(measured)
        if value is None:
            raise RecipeError(
                f"gates.{name}: {limit:g} cannot be checked, as it {GATES[name].need}; add it, or "
                "drop the gate"
            )
        passed = value <= limit if _is_upper(name) else value >= limit
        checked.append(Gate(name=name, limit=limit, value=value, passed=passed))
    return checked


def _is_upper(gate: str) -> bool:
    """Return whether the limit of a gate is the largest value that passes."""
    return gate.startswith("max_")


def unproven_gates(gates: Iterable[Gate], accuracy: Accuracy | None) -> list[str]:
    """Return a sentence for each gate whose limit lies inside the 95 % interval of its value.

    Args:
        gates: of a run.
        accuracy: of the run, with the intervals.
    """
    sentences = []
    for gate in gates:
        kind = GATES.get(gate.name)
        interval = getattr(accuracy, kind.interval, None) if kind and kind.interval else None
        if interval is None:
            continue
        lo, hi = interval
        if (lo <= gate.limit < hi) if _is_upper(gate.name) else (lo < gate.limit <= hi):
            sentences.append(
                f"The limit {gate.name} {gate.limit:g} lies inside the 95 % interval of what was "
                f"measured, {lo:.2f} to {hi:.2f}."
            )
    return sentences


def output_gates(gates: Iterable[Gate]) -> list[Gate]:
    """Return the gates whose values say how good the network's outputs are."""
    return [gate for gate in gates if gate.name in GATES and GATES[gate.name].of_outputs]


def parity_gates(report: "Report") -> list[Gate]:
    """Return the parity gates of a report; none where parity was not measured.

    None as well where the report lists them among its gates, so that they are shown once.
    """
    if report.parity is None or any(gate.name.startswith("parity_") for gate in report.gates):
        return []
    return report.parity.gates
