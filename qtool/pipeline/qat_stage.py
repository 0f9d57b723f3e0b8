"""What `qtool qat` does between calibration and rounding: the plan learns."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qtool.data import Dataset
from qtool.data.preprocess import Preprocess, load_preprocess
from qtool.errors import DataError
from qtool.graph.queries import dims
from qtool.metrics.classification import check_label_range
from qtool.pipeline.input_checks import disjoint
from qtool.pipeline.prepare import Prepared
from qtool.pipeline.qat_checks import asked_loss, parted, refuse_codes, refuse_own_loss
from qtool.pipeline.qat_workers import make_network, open_section, refuse_shares, tell
from qtool.progress import Progress
from qtool.qat import distributed
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantSpec
from qtool.recipe.model import Recipe
from qtool.recipe.qat_section import Augment, Qat
from qtool.report.schema import TrainingEpoch, TrainingPart
from qtool.steps.stage_cache import Record, Stages

if TYPE_CHECKING:
    from qtool.qat.settings import Epoch, Pixels, Settings

ADVICE = (
    "lower qat.lr, try optimizer: adamw, or equalize the network first (channels of one layer that "
    "differ a hundredfold share a grid badly; cross-layer equalization makes them alike)"
)
ANEW = (
    "training began anew: the one kept in this folder was of another model, recipe, data, seed, "
    "device, number of threads or processes, or version of qtool or its libraries"
)
# A trained network this many points of top-1 below the float one calls for advice, if that is more
# than two samples.
FAR = 5.0
# Shares of red, green and blue in a gray value: ITU-R BT.601, as Pillow and torchvision have it.
LUMA = (0.299, 0.587, 0.114)


def learn(
    recipe: Recipe,
    prepared: Prepared,
    plan: QuantPlan,
    stages: Stages,
    epochs: int | None,
    seed: int,
    device: str,
    progress: Progress,
) -> tuple[QuantPlan, TrainingPart]:
    """The plan with learned grids, codes and biases, and what the report says of it.

    Args:
        recipe: has a ``qat`` section.
        prepared: what the run reads.
        plan: calibrated; training starts there.
        stages: keeps the checkpoint, which a stopped run goes on from.
        epochs: instead of the recipe's.
        seed: of every random choice.
        device: where to train.
        progress: told about every step.

    Raises:
        QtoolError: the data cannot teach this network, or the plan cannot be trained.
    """
    section = recipe.qat
    if section is None:
        raise recipe.error((), "`qtool qat` needs a qat section: at least qat: {images: DIR}")
    with stages.stage("qat") as record:
        data = _open(recipe, section, prepared, record)
        _refuse(recipe, section, prepared, data)
        lessons, validation = parted(recipe, section, data, seed)
        fixed = prepared.fixed_batch
        if fixed is not None and section.batch != fixed:
            raise recipe.error(
                ("qat", "batch"), f"the model has a fixed batch of {fixed}; write batch: {fixed}"
            )
        if fixed is not None and lessons.count < fixed:
            raise DataError(
                f"qat: {lessons.count} samples to learn from, fewer than the model's fixed batch "
                f"of {fixed}; give more"
            )
        refuse_shares(recipe, min(section.batch, lessons.count), fixed)
        run = _Run(
            recipe,
            section,
            prepared,
            plan,
            stages,
            lessons,
            validation,
            epochs,
            seed,
            device,
            progress,
        )
        return _train(run, record)


@dataclass(frozen=True)
class _Run:
    """What :func:`learn` was given, and the two parts of its data."""

    recipe: Recipe
    section: Qat
    prepared: Prepared
    plan: QuantPlan
    stages: Stages
    lessons: Dataset
    validation: Dataset
    epochs: int | None
    seed: int
    device: str
    progress: Progress


def _open(recipe: Recipe, section: Qat, prepared: Prepared, record: Record) -> Dataset:
    """Training samples, disjoint from those the file is judged on; without labels if not needed."""
    data = open_section(recipe, section, prepared)
    record.notes += [f"qat: {note}" for note in data.notes]
    return disjoint(recipe, section, data, prepared.judged, record, "training")


def _refuse(recipe: Recipe, section: Qat, prepared: Prepared, data: Dataset) -> None:
    """Raises QtoolError for labels or changes of images that do not fit the network."""
    refuse_own_loss(recipe, section, data)
    first = prepared.loaded.model.graph.outputs[0]
    labels, share, shape = data.labels, _teacher(section, data), dims(first)
    refuse_codes(section, first, share)
    if share == 1 and section.label_smoothing:
        why = "training has no labels to smooth here; leave it out"
        raise recipe.error(("qat", "label_smoothing"), why)
    no_loss = labels is None and section.loss is None
    if no_loss and section.distill and section.distill.weight < 1:
        why = f"{section.where} has no labels for the rest of the loss; write 1"
        raise recipe.error(("qat", "distill", "weight"), why)
    if share < 1 and section.loss is None:
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                "qat: training by labels needs one class number per sample; without them the float "
                "network teaches: write distill: {weight: 1}"
            )
        if shape is None or len(shape) != 2 or shape[1] == 1:
            raise DataError(
                f"qat: the model's first output has shape {list(shape or ())}, but training by "
                "labels needs [N, classes]; let the float network teach: distill: {weight: 1}"
            )
        if isinstance(shape[1], int):
            check_label_range(labels, shape[1])
    known = _preprocess(section, recipe)
    layout = known.layout if known is not None and section.images is not None else "nchw"
    ranks = [len(spec.shape) for spec in prepared.inputs.values()]
    augment = section.augment
    if augment != Augment() and (ranks != [4] or layout != "nchw"):
        found = ", ".join(spec.describe() for spec in prepared.inputs.values())
        raise recipe.error(
            ("qat", "augment"),
            f"found {found}, expected one input of images [N, C, H, W]; leave augment out",
        )
    if augment.colour and (known is None or section.images is None):
        why = "needs to know the pixels; expected images and the preprocess that made them inputs"
        raise recipe.error(("qat", "augment", "colour"), f"{why}: write both, or leave it out")


def _teacher(section: Qat, data: Dataset) -> float:
    """The float network's share of the loss."""
    if data.labels is None and section.loss is None:
        return 1.0
    return section.distill.weight if section.distill else 0.0


def _train(run: "_Run", record: Record) -> tuple[QuantPlan, TrainingPart]:
    import torch

    from qtool.qat.settings import RunFiles, best_of
    from qtool.qat.trainer import train

    torch.manual_seed(run.seed)
    section, settings = run.section, _settings(run)
    network, teacher = make_network(section, run.prepared, run.plan, run.device)
    keep = run.stages.place("qat", _parts(run), ".pt")
    if run.stages.fresh:
        keep.unlink(missing_ok=True)
    elif not keep.is_file() and any(keep.parent.glob(f"qat-*{keep.suffix}")):
        record.notes.append(ANEW)
    tell(run.plan, settings, keep, run.prepared.loaded.sha256, run.lessons)
    board = None
    if section.tensorboard:
        board = run.stages.folder.parent / "tensorboard" / keep.stem
    files = RunFiles(keep, board)
    history, float_score = train(
        network, teacher, run.lessons, run.validation, settings, files, run.progress
    )
    best = best_of(history)
    record.notes += warnings_of(history, settings.epochs, float_score, run.validation.count)
    if distributed.count() > 1:
        record.notes.append(
            f"{distributed.count()} processes shared every batch of {settings.batch}"
        )
    record.notes.append(
        f"epoch {best} of {len(history) - 1} was the best on {run.validation.count} held-out "
        f"samples; {len(network.norms)} BatchNorms {section.batchnorm}"
    )
    part = _part(run, best, history, float_score)
    if part.oscillating is not None:
        frozen = "" if part.frozen is None else f", {part.frozen:.2%} were frozen"
        record.notes.append(
            f"{part.oscillating:.2%} of the weights of at most 4 bits oscillated when training "
            f"ended{frozen}"
        )
    return network.freeze(), part


def warnings_of(
    history: "list[Epoch]", epochs: int, float_score: float | None = None, held_out: int = 100
) -> list[str]:
    """What the user must know of a training that ended early, or in vain.

    Args:
        history: epochs judged, the plan before training first.
        epochs: asked for.
        float_score: of the float network on the same samples, where the score is top-1 in %.
        held_out: how many these are.
    """
    from qtool.qat.settings import best_of

    best = best_of(history)
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
    if float_score is not None and float_score - history[best].score > max(FAR, 200 / held_out):
        return [
            f"WARNING: the best epoch has {history[best].score:.2f} on the held-out samples, the "
            f"float network {float_score:.2f}: train longer, give more bits, {ADVICE}"
        ]
    return []


def _part(
    run: "_Run", best: int, history: "list[Epoch]", float_score: float | None
) -> TrainingPart:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 6)

    lines = [
        TrainingEpoch(
            epoch=e.number,
            loss=rounded(e.loss),
            score=round(e.score, 4),
            oscillating=rounded(e.oscillating),
            frozen=rounded(e.frozen),
        )
        for e in history
    ]
    return TrainingPart(
        count=run.lessons.count,
        sha256=run.lessons.digest,
        validation=run.validation.count,
        quantizer=run.section.quantizer.name,
        best=best,
        float_score=None if float_score is None else round(float_score, 4),
        epochs=lines,
        oscillating=lines[-1].oscillating,
        frozen=lines[-1].frozen,
    )


def _settings(run: "_Run") -> "Settings":
    from qtool.qat.settings import Oscillation, Settings

    section = run.section
    asked = section.oscillation
    last = run.prepared.loaded.model.graph.outputs[0].producer()
    return Settings(
        epochs=run.epochs or section.epochs,
        batch=min(section.batch, run.lessons.count),
        fixed=run.prepared.fixed_batch is not None,
        probabilities=last is not None and last.op_type == "Softmax",
        optimizer=section.optimizer,
        lr=section.lr,
        scale_lr=section.scale_lr,
        weight_decay=section.weight_decay,
        warmup=section.warmup,
        clip=section.clip,
        precision=section.precision,
        label_smoothing=section.label_smoothing,
        loss=asked_loss(section, run.prepared),
        teacher=_teacher(section, run.lessons),
        temperature=section.distill.temperature if section.distill else 1.0,
        blocks=section.distill.blocks if section.distill else 0.0,
        crop=section.augment.crop,
        flip=section.augment.flip,
        fill=_black(section, run.recipe),
        colour=section.augment.colour,
        mixup=section.augment.mixup,
        cutmix=section.augment.cutmix,
        pixels=_pixels(section, run.recipe),
        seed=run.seed,
        oscillation=None if asked is None else Oscillation(**asked.model_dump()),
        ema=section.ema,
    )


def _parts(run: "_Run") -> tuple[str, ...]:
    """Everything a checkpoint depends on but the number of epochs, which may grow."""
    plan, digest = run.plan, hashlib.sha256()
    for name, grid in sorted(plan.grids.items()):
        # Not their repr, which differs between grids just made and grids read from a file.
        if isinstance(grid, QuantSpec):
            digest.update(f"{name} {grid}".encode())
            continue
        digest.update(f"{name} {grid.spec}".encode())
        digest.update(np.asarray(grid.scale, np.float32).tobytes())
        digest.update(np.asarray(grid.zero_point, np.int32).tobytes())
    for name, codes in sorted(plan.codes.items()):
        digest.update(name.encode() + np.ascontiguousarray(codes).tobytes())
    asked = run.section.model_dump_json(exclude={"epochs", "tensorboard"})
    own = asked_loss(run.section, run.prepared)
    asked += own.digest if own is not None else ""
    loaded = run.prepared.loaded.sha256
    # Sums over processes round in another order.
    choices = (str(run.seed), str(distributed.count()))
    return (loaded, asked, digest.hexdigest(), repr(plan.sites), run.lessons.digest, *choices)


def _black(section: Qat, recipe: Recipe) -> tuple[float, ...]:
    """What a black pixel is for the network, per channel."""
    known = _preprocess(section, recipe)
    if known is None or not section.augment.crop:
        return (0.0,)
    mean, std = (np.atleast_1d(np.asarray(v, np.float64)) for v in (known.mean, known.std))
    return tuple(float(v) for v in -mean / std)


def _pixels(section: Qat, recipe: Recipe) -> "Pixels":
    """How pixels become the network's inputs, as far as it matters."""
    from qtool.qat.settings import Pixels

    known = _preprocess(section, recipe)
    if known is None or not section.augment.colour:
        return Pixels()
    mean, std = (np.broadcast_to(np.asarray(v), known.channels) for v in (known.mean, known.std))
    unit = 255 if known.dtype == "uint8" else 255 * known.scale
    luma = (1.0,) if known.channels == 1 else LUMA[:: -1 if known.color == "bgr" else 1]
    return Pixels(tuple(map(float, unit / std)), tuple(map(float, -mean / std)), luma)


def _preprocess(section: Qat, recipe: Recipe) -> Preprocess | None:
    """What is done to training images, as far as the recipe says it."""
    how = section.preprocess or recipe.calibrate.preprocess
    return load_preprocess(how) if isinstance(how, str) else how
