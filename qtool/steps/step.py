"""Define the shape of a step: a plan and a context in, a better plan out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from qtool.quant.plan import QuantPlan
from qtool.report.schema import PtqStep, TrainingPart
from qtool.steps.context import Context

NEEDS = ("bias", "labels", "samples")
"""Requirements that an entry may name in ``needs``; each is checked or provided before any work.

``bias``: every layer with weights has a bias (zeros are added); ``labels``: the data has labels;
``samples``: there are calibration samples, not synthetic ones.
"""


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step.

    Attributes:
        plan: the changed plan.
        notes: sentences for the report.
        metrics: numbers by name, such as the layers that were changed.
        training: history of a step that trains; None for the others.
        rows: for the report, of parts that the step compared itself, such as blocks.
    """

    plan: QuantPlan
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    training: TrainingPart | None = None
    rows: tuple[PtqStep, ...] = ()


class Step(Protocol):
    """Improve a plan. An entry is a frozen pydantic dataclass: its fields are the recipe's options.

    The docstring of the entry is its help in ``qtool list``. Estimates of memory read attributes
    that an entry need not have: ``batch``, the samples that it learns on at a time; ``blockwise``,
    True where it learns block by block; ``second_order``, True where it computes the second moments
    of each layer's inputs.
    """

    needs: ClassVar[frozenset[str]]
    """Names from NEEDS."""

    guarded: ClassVar[bool]
    """True: the result is compared with the plan before on ``holdout`` and dropped if worse."""

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the improved plan.

        Args:
            plan: every grid is calibrated.
            context: what the run reads.
        """
