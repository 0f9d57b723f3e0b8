"""BRECQ: learn rounding and step sizes of a block against the float block's output."""

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
class Brecq:
    """Learn rounding, scales and biases below 8 bits, block by block, against the float outputs.

    A block is a part of the network with one input and one output: a residual block, the halves of
    a transformer layer, a pair of layers. Inputs are those of the quantized network::

        min of sum_c w_c (y_c - y_float_c)^2 [+ lambda sum(1 - |2 h(V) - 1|^beta)]

    over the rounding of weights, the steps of activations, the scales of weights and biases. A
    block is left as it was where its error on holdout samples does not fall. No labels are read.

    Args:
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
        window: positions along each axis of a block's output that an iteration reads, at random,
            where the block has convolutions alone; null: all. A part of a large map says almost as
            much, in a part of the time.
        minutes: for all blocks, at most; iterations then follow from a measured step.

    Source: Li et al. 2021, "BRECQ", arXiv:2102.05426; Hubara et al. 2020 (straight_through),
        arXiv:2006.10518; Wu et al. 2025, "FIMA-Q" (least_squares), arXiv:2506.11543.
    Departure: steps and rounding learn together, scales of weights and biases too; windows.
    """

    _: KW_ONLY
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
    window: int | None = Field(default=14, ge=1)
    minutes: float | None = Field(default=None, gt=0)

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True
    blockwise: ClassVar[bool] = True
    name: ClassVar[str] = "brecq"

    @property
    def drop_probability(self) -> float:
        """The probability that an element of an activation stays unrounded in an iteration."""
        return 0.0

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
            name=self.name,
            whole=True,
            rounding=self.rounding,
            warm=self.warm_start,
            narrow_only=True,
            steps=True,
            drop=self.drop_probability,
            weighting=self.weighting,
            samples=self.samples,
            batch=self.batch,
            window=self.window,
            schedule=schedule,
            minutes=self.minutes,
        )(plan, context)
