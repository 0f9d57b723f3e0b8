"""QDrop: block reconstruction in which activations stay unrounded at random."""

from dataclasses import KW_ONLY
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.reconstruction.blocks import has_narrow_activations
from qtool.ptq.reconstruction.learning import Schedule
from qtool.ptq.reconstruction.loop import Reconstruction
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class QDrop:
    """Learn blocks as brecq does; activations are rounded with probability 1 - drop only.

    In every iteration each element of an activation keeps its unrounded value with probability
    ``drop``, and each element of the block's input that of the float network. Learned roundings
    are then less bound to the errors of these samples (flatter minima); for activations of 4 bits
    and fewer. A block is left as it was where its error on holdout samples does not fall, without
    dropping. No labels are read.

    Args:
        drop: probability that an element stays unrounded; 0 is brecq.
        rounding: straight_through: codes move freely, gradients pass the rounding (AdaQuant); soft:
            each weight chooses between two codes (AdaRound), which needs thousands of iterations.
        weighting: w: none (1), fisher (squared gradient of the network's output distance), or
            least_squares (its diagonal Hessian by channel).
        activations: below_8: leave networks alone in which no activation has fewer bits.
        iterations: for each block.
        lr: of Adam, on the rounding, in units of codes.
        scale_lr: on logarithms of scales and steps, and on biases in halves of the output's range;
            times the root of the block's relative error.
        regularization: lambda, of soft rounding.
        warm_start: 0 starts at the float weights, 1 at the plan's codes, such as those of gptq.
        batch: samples of an iteration.
        samples: of the calibration data, at most.
        minutes: for all blocks, at most; iterations then follow from a measured step.

    Source: Wei et al. 2022, "QDrop", arXiv:2203.05740.
    Departure: as of brecq.
    """

    _: KW_ONLY
    drop: float = Field(default=0.5, ge=0, lt=1)
    rounding: Literal["straight_through", "soft"] = "straight_through"
    weighting: Literal["none", "fisher", "least_squares"] = "none"
    activations: Literal["any", "below_8"] = "any"
    iterations: int = Field(default=500, ge=1)
    lr: float = Field(default=0.01, gt=0)
    scale_lr: float = Field(default=0.02, gt=0)
    regularization: float = Field(default=0.01, ge=0)
    warm_start: float = Field(default=0.6, ge=0, le=1)
    batch: int = Field(default=32, ge=1)
    samples: int = Field(default=512, ge=1)
    minutes: float | None = Field(default=None, gt=0)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with new codes, scales, steps and biases.

        Args:
            plan: every grid is calibrated.
            context: the ``fit`` samples are learned from, ``holdout`` decides about each block.
        """
        if self.activations == "below_8" and not has_narrow_activations(context.model.graph, plan):
            return StepResult(plan, ("no activation has fewer than 8 bits: nothing changed",))
        schedule = Schedule(self.iterations, self.lr, self.scale_lr, self.regularization)
        return Reconstruction(
            name="qdrop",
            whole=True,
            rounding=self.rounding,
            warm=self.warm_start,
            steps=True,
            drop=self.drop,
            weighting=self.weighting,
            samples=self.samples,
            batch=self.batch,
            schedule=schedule,
            minutes=self.minutes,
        )(plan, context)
