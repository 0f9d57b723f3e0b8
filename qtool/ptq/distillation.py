"""Distillation: train the whole quantized network to give the float network's output."""

from dataclasses import KW_ONLY, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.errors import RecipeError, UnsupportedError
from qtool.graph.compared_output import has_probabilities
from qtool.graph.queries import computed_elements
from qtool.qat import distributed
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.loss import float_teacher
from qtool.qat.quantizers.lsq import LSQ
from qtool.qat.settings import RunFiles, Settings, best_epoch
from qtool.qat.trainer import train
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import plan_digest
from qtool.steps.context import Context
from qtool.steps.step import StepResult

# Shift of augmented images, as a share of their height, and the share of them that get a box of
# another image.
CROP_SHARE, CUTMIX = 16, 0.5

# Epochs without a better one after which nothing more is tried.
PATIENCE = 3

# Inferences by ONNX Runtime that one sample costs in one epoch (EfficientNet-Lite0).
TRAINING = 10.0

# Elements of all values of one iteration, each of which takes 10 bytes while it learns.
MAX_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Distillation:
    """Train weights, steps and biases of the whole network on calibration samples, without labels.

    The float network is the teacher; the steps are LSQ's::

        loss = KL(softmax(y_float) || softmax(y))      of scores [N, C], else squared error

    It starts from the plan's codes. Images are shifted by up to a sixteenth of their height,
    mirrored, and every second one gets a box of another image, at random, since a network overfits
    a few hundred samples soon. The epoch of least loss on holdout samples is used, the plan before
    training among them; three epochs without a better one are the last. Weights of 8 bits follow
    their range; scales of a fixed form keep it. A run that was stopped goes on from its last epoch.

    Args:
        epochs: over the samples.
        lr: of SGD with momentum, falling to 0 along a cosine; scales learn at a hundredth.
        batch: samples of an iteration; fewer where they do not fit in 700 MB, and lr as much lower.
        augment: change inputs that are colour images [N, 3, H, W].

    Source: Hinton et al. 2015, arXiv:1503.02531 (the loss); Finkelstein et al. 2022, "QFT",
        arXiv:2212.02634 (all parameters jointly, without labels); Yun et al. 2019, "CutMix",
        arXiv:1905.04899 (boxes; Beyer et al. 2022, arXiv:2106.05237, with a teacher).
    """

    _: KW_ONLY
    epochs: int = Field(default=6, ge=1)
    lr: float = Field(default=0.004, gt=0)
    batch: int = Field(default=16, ge=1)
    augment: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with learned grids, codes and biases.

        Args:
            plan: every grid is calibrated.
            context: the ``fit`` samples are learned from, ``holdout`` chooses the epoch.

        Raises:
            RecipeError: a weight has a width or a code book that training cannot learn, or grids
                are computed at run time.
            UnsupportedError: the output has no gradient.
        """
        try:
            network = QatNetwork(context.model, plan, LSQ(), "folded", context.device)
        except RecipeError as error:
            raise RecipeError(f"ptq: distillation: {error}; or leave the step out") from error
        _check_gradient(network, context)
        # Labels, where the samples have them, are not read.
        data, validation = (replace(part, labels=None) for part in context.parts)
        torch.manual_seed(context.seed)
        digest = plan_digest(plan)
        key = (context.sha256, repr(self), context.calibration.digest, digest, str(context.seed))
        checkpoint = context.cache.path_for("distillation", key, ".pt")
        if context.cache.fresh:
            checkpoint.unlink(missing_ok=True)
        teacher = float_teacher(context.model, context.device)
        with distributed.alone():  # the other processes of torchrun run no steps
            history, _ = train(
                network,
                teacher,
                data,
                validation,
                self._settings(context, data.count),
                RunFiles(checkpoint),
                lambda stage, *more: context.progress("distillation", *more),
            )
        best = best_epoch(history)
        checkpoint.unlink(missing_ok=True)  # the finished result is stored by the guard
        note = f"epoch {best} of {self.epochs} on {data.count} samples"
        return StepResult(network.freeze() if best else plan, (note,), {"epoch": best})

    @property
    def inferences(self) -> float:
        """The inferences of the float network that take as long as training on one sample."""
        return TRAINING * self.epochs

    def rows(self, model: ir.Model) -> int:
        """Return the samples of an iteration: ``batch``, or as many as fit in memory."""
        elements = computed_elements(model.graph)
        return int(np.clip(MAX_ELEMENTS // max(elements, 1), 1, self.batch))

    def _settings(self, context: Context, samples: int) -> Settings:
        """Return the settings of the training loop."""
        shapes = [spec.shape for spec in context.inputs.values()]
        image = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 3
        height = shapes[0][2] if image else 0
        changes = self.augment and isinstance(height, int) and image
        rows = context.fixed_batch or min(self.rows(context.model), samples)
        return Settings(
            epochs=self.epochs,
            batch=rows,
            fixed=context.fixed_batch is not None,
            probabilities=has_probabilities(context.model),
            lr=self.lr * min(rows / self.batch, 1.0),
            crop=height // CROP_SHARE if changes and isinstance(height, int) else 0,
            flip=changes,
            cutmix=CUTMIX if changes else 0.0,
            patience=PATIENCE,
            seed=context.seed,
        )


def _check_gradient(network: QatNetwork, context: Context) -> None:
    """Refuse a network whose compared output is of integers, or does not change with weights."""
    feeds, _ = next(context.feeds(context.holdout, 1))
    device = torch.device(context.device)
    inputs = {name: torch.as_tensor(array).to(device) for name, array in feeds.items()}
    if not network(inputs, (network.compared,))[network.compared].requires_grad:
        raise UnsupportedError(
            f'ptq: distillation cannot train towards "{network.compared}": found an output without '
            "gradients, expected floats that change with the weights; leave the step out"
        )
