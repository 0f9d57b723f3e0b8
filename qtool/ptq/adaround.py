"""AdaRound: learn for every weight whether it is rounded down or up."""

from dataclasses import KW_ONLY
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.reconstruction.learning import Schedule
from qtool.ptq.reconstruction.loop import Reconstruction
from qtool.quant.plan import QuantPlan
from qtool.steps.context import Context
from qtool.steps.step import StepResult


@dataclass(frozen=True)
class AdaRound:
    """Learn the rounding of weights, layer by layer, against the float layer's output.

    Inputs are those of the quantized network, f is the layer's activation function::

        min over V of |f(W x_float) - f(W_q x_q)|^2 + lambda sum(1 - |2 h(V) - 1|^beta)
        W_q = s clip(floor + h(V), qmin, qmax),  h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

    beta falls from 20 to 2 after the first fifth of the iterations. Scales and biases stay. It
    starts between the float weights and the plan's codes, such as those of gptq. A layer is left
    as it was where its error on holdout samples does not fall. No labels are read.

    Args:
        iterations: for each layer.
        lr: of Adam, on V.
        regularization: lambda.
        bits: below_8 | all: which weights.
        warm_start: 0 starts at the float weights, 1 at the plan's codes.
        batch: samples of an iteration.
        samples: of the calibration data, at most.
        minutes: for all layers, at most; iterations then follow from a measured step.

    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
        arXiv:2004.10568.
    Departure: a start between float weights and codes; ten times the rate and a tenth of the
        iterations, as in AIMET.
    """

    _: KW_ONLY
    iterations: int = Field(default=1000, ge=1)
    lr: float = Field(default=0.01, gt=0)
    regularization: float = Field(default=0.01, ge=0)
    bits: Literal["below_8", "all"] = "all"
    warm_start: float = Field(default=0.5, ge=0, le=1)
    batch: int = Field(default=32, ge=1)
    samples: int = Field(default=512, ge=1)
    minutes: float | None = Field(default=None, gt=0)

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    guarded: ClassVar[bool] = True
    blockwise: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with new codes.

        Args:
            plan: every grid is calibrated.
            context: the ``fit`` samples are learned from, ``holdout`` decides about each layer.
        """
        schedule = Schedule(self.iterations, self.lr, 0.0, self.regularization)
        return Reconstruction(
            name="adaround",
            whole=False,
            rounding="soft",
            warm=self.warm_start,
            narrow_only=self.bits == "below_8",
            steps=False,
            drop=0.0,
            weighting="none",
            samples=self.samples,
            batch=self.batch,
            window=None,
            schedule=schedule,
            minutes=self.minutes,
        )(plan, context)
