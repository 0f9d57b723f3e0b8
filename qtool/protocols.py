"""The shapes of everything that plugs in. Nothing inherits from these; a table entry fits one."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

    from qtool.data import Dataset
    from qtool.quant.plan import QuantPlan, Stats
    from qtool.quant.primitives import QuantParams, QuantSpec

Observe = Callable[["ir.Value", Any], Any]
"""The executor's one hook: ``observe(value, tensor) -> tensor``; readers see what it returns."""


class Progress(Protocol):
    """Where long work reports: called often, drawn by whoever has a screen."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Say that ``done`` of ``total`` units of ``stage`` are finished."""


class Rewrite(Protocol):
    """Changes the graph, keeps the float function equal, returns how often it applied."""

    def __call__(self, model: "ir.Model") -> int:
        """Apply everywhere it fits."""


class Calibrator(Protocol):
    """Chooses a grid from statistics; pure."""

    def __call__(self, stats: "Stats", spec: "QuantSpec") -> "QuantParams":
        """The grid for one value."""


class PtqStep(Protocol):
    """Improves a plan with calibration data; guarded by held-out samples."""

    def __call__(
        self, model: "ir.Model", plan: "QuantPlan", data: "Dataset", run: Any
    ) -> "QuantPlan":
        """Return the improved plan."""


class Reader(Protocol):
    """Turns a recipe's data section into a Dataset."""

    def __call__(self, section: Any, inputs: Mapping[str, Any]) -> "Dataset":
        """Open the data for the model's named inputs."""


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """A Progress that draws nothing."""
