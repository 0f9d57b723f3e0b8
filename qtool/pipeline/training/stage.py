"""Train the calibrated plan: the step that ``qtool qat`` adds to those of ``qtool ptq``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qtool.data import Dataset
from qtool.errors import DataError
from qtool.graph.queries import by_name, dims
from qtool.metrics.classification import check_label_range
from qtool.pipeline.context import Prepared
from qtool.pipeline.input_checks import disjoint, usable
from qtool.pipeline.prepare import with_guesses
from qtool.pipeline.training.checks import (
    check_loss_labels,
    check_output_gradient,
    recipe_loss,
    train_validation_split,
)
from qtool.pipeline.training.settings import teacher_share, train_preprocess, training_settings
from qtool.pipeline.training.workers import build_network, check_shares, open_section, start_workers
from qtool.qat import distributed
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_archive import plan_digest
from qtool.recipe.model import Recipe
from qtool.recipe.sections.qat import Augment, Qat
from qtool.report.schema import TrainingEpoch, TrainingPart
from qtool.steps.context import Context
from qtool.steps.step import StepResult

if TYPE_CHECKING:
    from qtool.qat.settings import Epoch

ADVICE = (
    "lower qat.lr, try optimizer: adamw, or equalize the network first (channels of one layer that "
    "differ a hundredfold share a grid badly; cross-layer equalization makes them alike)"
)
RESTARTED = (
    "training began anew: the checkpoint in this folder was of another model, recipe, data, seed, "
    "device, number of threads or processes, or version of qtool or its libraries"
)
# Points of top-1 below the float network from which on the run gives advice; fewer than three
# samples of difference do not count.
FAR = 5.0


@dataclass(frozen=True)
class Training:
    """Quantization-aware training of weights, scales and BatchNorm, configured by ``recipe.qat``.

    Attributes:
        prepared: recipe, model and data of the run.
        section: the recipe's ``qat``.
        train_data: samples to learn from.
        validation: samples that choose the best epoch.
        resolved: the recipe of the run, with all that opening the samples filled in.
        notes: about the samples, for the report.
    """

    prepared: Prepared
    section: Qat
    train_data: Dataset
    validation: Dataset
    resolved: Recipe
    notes: tuple[str, ...] = ()
    needs: ClassVar[frozenset[str]] = frozenset()
    guarded: ClassVar[bool] = False  # its validation samples choose the best epoch, 0 among them

    @classmethod
    def open(cls, prepared: Prepared) -> "Training":
        """Open the training data and check it against the network, before any other work.

        Args:
            prepared: its graph is rewritten.

        Raises:
            QtoolError: there is no ``qat`` section, or the data cannot train this network.
        """
        recipe, context = prepared.recipe, prepared.context
        section = recipe.qat
        if section is None:
            raise recipe.error(
                (), "`qtool qat` needs samples to train on: calibrate or qat: {images: DIR}"
            )
        data = open_section(recipe, section, context)
        notes = [f"qat: {note}" for note in data.notes]
        resolved = with_guesses(recipe, "qat", data)
        evaluation = prepared.evaluation.dataset
        data, warnings = usable(data, "training")
        data, dropped = disjoint(recipe, section, data, evaluation, "training")
        _check_batchnorm(prepared, section)
        _check_data(prepared, section, data)
        train_data, validation = train_validation_split(recipe, section, data, context.seed)
        _check_batch(prepared, section, train_data)
        return cls(
            prepared, section, train_data, validation, resolved, (*notes, *warnings, *dropped)
        )

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with learned grids, codes and biases.

        Raises:
            QtoolError: the plan cannot be trained.
        """
        run = _TrainingRun(self.prepared, self.section, plan, self.train_data, self.validation)
        result = run.train()
        return StepResult(result.plan, (*self.notes, *result.notes), training=result.training)


def _check_batchnorm(prepared: Prepared, section: Qat) -> None:
    """Raise RecipeError for statistics of a BatchNorm that the network does not have."""
    nodes = prepared.context.model.graph
    if section.batchnorm == "frozen" and not any(node.meta.get("folded_norm") for node in nodes):
        why = "found no BatchNorm behind a layer (an export may have folded it); leave it out"
        raise prepared.recipe.error(("qat", "batchnorm"), f"frozen: {why}")


def _check_data(prepared: Prepared, section: Qat, data: Dataset) -> None:
    """Raise QtoolError for labels or augmentations that do not fit the network."""
    recipe, context = prepared.recipe, prepared.context
    check_loss_labels(section, data)
    output = by_name(context.model.graph)[context.first_output]
    labels, share, shape = data.labels, teacher_share(section, data), dims(output)
    check_output_gradient(section, output, share)
    if share == 1 and section.label_smoothing:
        why = "training has no labels to smooth here; leave it out"
        raise recipe.error(("qat", "label_smoothing"), why)
    no_loss = labels is None and section.loss is None
    if no_loss and section.distill and section.distill.weight < 1:
        why = f"{section.where} has no labels for the rest of the loss; write 1"
        raise recipe.error(("qat", "distill", "weight"), why)
    _check_temperature(recipe, section, share, shape)
    if share < 1 and section.loss is None:
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                "qat: training by labels needs one class number per sample; without them the float "
                "network teaches: write distill: {weight: 1}"
            )
        if shape is None or len(shape) != 2 or shape[1] == 1:
            raise DataError(
                f"qat: the model's output {output.name} has shape {list(shape or ())}, but "
                "training by labels needs [N, classes]; let the float network teach: distill: "
                "{weight: 1}"
            )
        if isinstance(shape[1], int):
            check_label_range(labels, shape[1])
    preprocess = train_preprocess(section, recipe)
    layout = preprocess.layout if preprocess is not None and section.images is not None else "nchw"
    ranks = [len(spec.shape) for spec in context.inputs.values()]
    augment = section.augment
    if augment != Augment() and (ranks != [4] or layout != "nchw"):
        listed = ", ".join(spec.describe() for spec in context.inputs.values())
        raise recipe.error(
            ("qat", "augment"),
            f"found {listed}, expected one input of images [N, C, H, W]; leave augment out",
        )
    if augment.colour and (preprocess is None or section.images is None):
        why = "needs the pixels; expected images and the preprocess that made them inputs"
        raise recipe.error(("qat", "augment", "colour"), f"{why}: write both, or leave it out")


def _check_temperature(
    recipe: Recipe, section: Qat, share: float, shape: Sequence[object] | None
) -> None:
    """Raise RecipeError for a temperature of distributions that are not compared.

    Args:
        recipe: names the line to change.
        section: the recipe's ``qat``.
        share: of the loss that is the float network's output.
        shape: of that output; None where it has none.
    """
    if section.distill is None or section.distill.temperature == 1:
        return
    key = ("qat", "distill", "temperature")
    if share == 0:
        why = "has no effect where the float network's output has no share of the loss"
        raise recipe.error(key, f"{why}; raise qat.distill.weight, or leave it out")
    if shape is not None and (len(shape) != 2 or shape[1] == 1):
        why = "is no scores of classes, so the float network's is compared by squared error"
        raise recipe.error(key, f"the output of shape {list(shape)} {why}; leave it out")


def _check_batch(prepared: Prepared, section: Qat, train_data: Dataset) -> None:
    """Raise QtoolError where batches do not fit the model or the processes."""
    recipe, fixed = prepared.recipe, prepared.context.fixed_batch
    if fixed is not None and section.batch != fixed:
        raise recipe.error(
            ("qat", "batch"), f"the model has a fixed batch of {fixed}; write batch: {fixed}"
        )
    if fixed is not None and train_data.count < fixed:
        raise DataError(
            f"qat: {train_data.count} samples to train on, fewer than the model's fixed batch "
            f"of {fixed}; give more"
        )
    check_shares(recipe, min(section.batch, train_data.count), fixed)


@dataclass(frozen=True)
class _TrainingRun:
    """Inputs of one training."""

    prepared: Prepared
    section: Qat
    plan: QuantPlan
    train_data: Dataset
    validation: Dataset

    def train(self) -> StepResult:
        import torch

        from qtool.qat.settings import RunFiles, best_epoch
        from qtool.qat.trainer import train

        context, section = self.prepared.context, self.section
        torch.manual_seed(context.seed)
        settings = training_settings(self.prepared, section, self.train_data)
        network, teacher = build_network(section, context, self.plan)
        checkpoint = context.cache.path_for("qat", self._key(repr(settings.pruning)), ".pt")
        notes = []
        if context.cache.fresh:
            checkpoint.unlink(missing_ok=True)
        elif not checkpoint.is_file() and any(checkpoint.parent.glob("qat-*.pt")):
            notes.append(RESTARTED)
        start_workers(self.plan, settings, checkpoint, context.sha256, self.train_data)
        board = None
        if section.tensorboard:
            board = context.cache.folder.parent / "tensorboard" / checkpoint.stem
        history, float_score = train(
            network,
            teacher,
            self.train_data,
            self.validation,
            settings,
            RunFiles(checkpoint, board),
            context.progress,
        )
        best = best_epoch(history)
        notes += warnings_of(history, settings.epochs, float_score, self.validation.count)
        if distributed.count() > 1:
            notes.append(f"{distributed.count()} processes shared every batch of {settings.batch}")
        notes.append(
            f"epoch {best} of {len(history) - 1} was the best on {self.validation.count} "
            f"validation samples; {len(network.norms)} BatchNorms {section.batchnorm}"
        )
        part = self._part(best, history, float_score)
        notes += _oscillation_notes(part)
        return StepResult(network.freeze(), tuple(notes), training=part)

    def _key(self, pruning: str) -> tuple[str, ...]:
        """Return all that a checkpoint depends on, without the number of epochs: it may grow.

        Args:
            pruning: masks that grow in training, as text.
        """
        section, context = self.section, self.prepared.context
        options = section.model_dump_json(exclude={"epochs", "tensorboard"})
        loss = recipe_loss(section, context.trust_code)
        options += loss.digest if loss is not None else ""
        # The number of processes changes the order of sums, and with it their rounding.
        choices = (str(context.seed), str(distributed.count()), pruning)
        return (context.sha256, options, plan_digest(self.plan), self.train_data.digest, *choices)

    def _part(self, best: int, history: "list[Epoch]", float_score: float | None) -> TrainingPart:
        """Return the training's part of the report."""

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 6)

        epochs = [
            TrainingEpoch(
                epoch=e.number,
                loss=rounded(e.loss),
                score=round(e.score, 4),
                oscillating=rounded(e.oscillating),
                frozen=rounded(e.frozen),
                sparsity=rounded(e.sparsity),
            )
            for e in history
        ]
        return TrainingPart(
            count=self.train_data.count,
            sha256=self.train_data.digest,
            validation=self.validation.count,
            quantizer=self.section.quantizer.name,
            best=best,
            float_score=None if float_score is None else round(float_score, 4),
            epochs=epochs,
            oscillating=epochs[-1].oscillating,
            frozen=epochs[-1].frozen,
        )


def _oscillation_notes(part: TrainingPart) -> list[str]:
    if part.oscillating is None:
        return []
    frozen = "" if part.frozen is None else f", {part.frozen:.2%} were frozen"
    return [
        f"{part.oscillating:.2%} of the weights of at most 4 bits oscillated when training ended"
        f"{frozen}"
    ]


def warnings_of(
    history: "list[Epoch]", epochs: int, float_score: float | None = None, samples: int = 100
) -> list[str]:
    """Return warnings about a training that ended early or did not improve the plan.

    Args:
        history: evaluated epochs, the plan before training first.
        epochs: requested number.
        float_score: of the float network on the validation samples, where it is top-1 in %.
        samples: number of validation samples.
    """
    from qtool.qat.settings import best_epoch

    best = best_epoch(history)
    if len(history) <= epochs:
        return [
            f"WARNING: stopped, for the loss of epoch {len(history)} is no number, or twice that "
            "of the first with a worse score than before training; the plan of epoch "
            f"{best} was kept: {ADVICE}"
        ]
    if best == 0:
        return [
            f"WARNING: no epoch was better than the plan before training ({history[0].score:.2f} "
            "on the held-out samples), which was kept. Where that is far from the float network: "
            + ADVICE
        ]
    if float_score is not None and float_score - history[best].score > max(FAR, 200 / samples):
        return [
            f"WARNING: the best epoch has {history[best].score:.2f} on the held-out samples, the "
            f"float network {float_score:.2f}: train longer, give more bits, {ADVICE}"
        ]
    return []
