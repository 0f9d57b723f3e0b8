"""Translate the recipe's ``qat`` section into the settings of the training loop."""

from typing import TYPE_CHECKING

import numpy as np

from qtool.data import Dataset
from qtool.data.preprocess import Preprocess, load_preprocess
from qtool.graph.compared_output import has_probabilities
from qtool.pipeline.context import Prepared
from qtool.pipeline.pruning.masks import gradual_pruning
from qtool.pipeline.training.checks import recipe_loss
from qtool.recipe.model import Recipe
from qtool.recipe.sections.qat import Qat

if TYPE_CHECKING:
    from qtool.qat.settings import Pixels, Settings

# Shares of red, green and blue in a gray value: ITU-R BT.601, as Pillow and torchvision have it.
LUMA = (0.299, 0.587, 0.114)


def training_settings(prepared: Prepared, section: Qat, train_data: Dataset) -> "Settings":
    """Return the settings of the training loop.

    Args:
        prepared: recipe, model and options.
        section: the recipe's ``qat``.
        train_data: samples that are trained on.
    """
    from qtool.qat.settings import Oscillation, Settings

    recipe, context = prepared.recipe, prepared.context
    oscillation, augment, distill = section.oscillation, section.augment, section.distill
    return Settings(
        epochs=section.epochs,
        batch=min(section.batch, train_data.count),
        fixed=context.fixed_batch is not None,
        probabilities=has_probabilities(context.model),
        optimizer=section.optimizer,
        lr=section.lr,
        scale_lr=section.scale_lr,
        weight_decay=section.weight_decay,
        warmup=section.warmup,
        schedule=section.schedule,
        clip=section.clip,
        extra_bits=section.extra_bits,
        precision=section.precision,
        label_smoothing=section.label_smoothing,
        loss=recipe_loss(section, context.trust_code),
        teacher=teacher_share(section, train_data),
        temperature=distill.temperature if distill else 1.0,
        blocks=distill.blocks if distill else 0.0,
        crop=augment.crop,
        flip=augment.flip,
        fill=_black(section, recipe),
        colour=augment.colour,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        pixels=_pixels(section, recipe),
        seed=context.seed,
        oscillation=None if oscillation is None else Oscillation(**oscillation.model_dump()),
        ema=section.ema,
        pruning=gradual_pruning(recipe, context.model),
    )


def teacher_share(section: Qat, data: Dataset) -> float:
    """Return the float network's share of the loss; 1 where there is nothing else."""
    if data.labels is None and section.loss is None:
        return 1.0
    return section.distill.weight if section.distill else 0.0


def train_preprocess(section: Qat, recipe: Recipe) -> Preprocess | None:
    """Return what is done to training images, as far as the recipe says it."""
    preprocess = section.preprocess or recipe.calibrate.preprocess
    return load_preprocess(preprocess) if isinstance(preprocess, str) else preprocess


def _black(section: Qat, recipe: Recipe) -> tuple[float, ...]:
    """Return the network's input for a black pixel, per channel."""
    preprocess = train_preprocess(section, recipe)
    if preprocess is None or not section.augment.crop:
        return (0.0,)
    pair = (preprocess.mean, preprocess.std)
    mean, std = (np.atleast_1d(np.asarray(v, np.float64)) for v in pair)
    return tuple(float(v) for v in -mean / std)


def _pixels(section: Qat, recipe: Recipe) -> "Pixels":
    """Return how pixels become the network's inputs, as far as colour changes need it."""
    from qtool.qat.settings import Pixels

    preprocess = train_preprocess(section, recipe)
    if preprocess is None or not section.augment.colour:
        return Pixels()
    pair = (preprocess.mean, preprocess.std)
    mean, std = (np.broadcast_to(np.asarray(v), preprocess.channels) for v in pair)
    unit = 255 if preprocess.dtype == "uint8" else 255 * preprocess.scale
    luma = (1.0,) if preprocess.channels == 1 else LUMA[:: -1 if preprocess.color == "bgr" else 1]
    return Pixels(tuple(map(float, unit / std)), tuple(map(float, -mean / std)), luma)
