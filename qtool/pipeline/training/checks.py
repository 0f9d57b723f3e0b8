"""Refuse training that cannot work: most of it before any work."""

import math
from importlib.util import find_spec

import onnx_ir as ir

from qtool.data import Dataset, split
from qtool.errors import DataError, KeyPath
from qtool.graph.queries import is_float
from qtool.pipeline.context import RunOptions
from qtool.qat.custom_loss import CustomLoss, custom_loss
from qtool.qat.settings import UNTRAINABLE_CODEBOOK, UNTRAINABLE_DYNAMIC, UNTRAINABLE_SCALE
from qtool.recipe.model import Recipe
from qtool.recipe.sections.qat import Qat
from qtool.recipe.target_defaults import apply_target_defaults
from qtool.targets.loader import load_target
from qtool.weights.scale_constraints import SCALES


def check_early(recipe: Recipe, options: RunOptions) -> None:
    """Raise for what the recipe's ``qat`` section requests and this run cannot do.

    Args:
        recipe: paths absolute.
        options: of the run.

    Raises:
        RecipeError: the bits give grids that cannot be trained; the loss is not trusted, not there,
            or would not be used; TensorBoard is requested and not installed; the device has no
            bfloat16.
    """
    recipe = apply_target_defaults(recipe, load_target(recipe.target))
    section = recipe.qat
    _check_grids(recipe)
    if section is None:
        return
    if section.precision == "bfloat16" and options.device != "cpu":
        import torch

        if not torch.cuda.is_bf16_supported(including_emulation=False):
            why = f"found bfloat16, which {torch.cuda.get_device_name()} does not compute with"
            raise recipe.error(("qat", "precision"), f"{why}; expected float32: write that")
    if section.tensorboard and find_spec("tensorboard") is None:
        why = "needs the package tensorboard, which is not installed; expected it"
        raise recipe.error(("qat", "tensorboard"), f"{why}: pip install 'qtool[tensorboard]'")
    if section.loss is not None:
        _check_custom_loss(recipe, section)
        custom_loss(section.loss, section.code, options.trust_code)


def _check_custom_loss(recipe: Recipe, section: Qat) -> None:
    if section.distill is not None and section.distill.weight == 1:
        why = "the teacher has all of the loss, and qat.loss none; lower it, or remove qat.loss"
        raise recipe.error(("qat", "distill", "weight"), why)
    if section.augment.mixes:
        why = (
            "mixed images have two labels each, a loss of your own takes one; leave one of both out"
        )
        raise recipe.error(("qat", "augment"), why)
    if section.label_smoothing:
        why = "belongs to cross entropy; smooth labels in your own loss, and leave it out"
        raise recipe.error(("qat", "label_smoothing"), why)


def _check_grids(recipe: Recipe) -> None:
    """Refuse what the network would refuse after calibration: code books, scales, dynamic grids."""
    bits = recipe.bits
    places: dict[KeyPath, tuple[object, object]] = {("bits",): (bits.weights, bits.activations)}
    for pattern, layer in bits.layers.items():
        widths = (layer.weights or bits.weights, layer.activations or bits.activations)
        places["bits", "layers", pattern] = widths
    if bits.scheme.name != "uniform":
        why = f"{bits.scheme.name}: a code book {UNTRAINABLE_CODEBOOK}"
        raise recipe.error(("bits", "scheme"), why)
    for place, (weights, activations) in places.items():
        if weights == 1:
            why = f"1: a code book {UNTRAINABLE_CODEBOOK} of 2 bits or more"
            raise recipe.error((*place, "weights"), why)
        if activations == "dynamic":
            raise recipe.error((*place, "activations"), f"dynamic: {UNTRAINABLE_DYNAMIC}")
    integers = any("float" not in widths for widths in places.values())
    target = load_target(recipe.target)
    kind = target.scale if bits.scale is None else bits.scale.build(SCALES).kind
    if integers and kind != "float":
        whose = "" if bits.scale is not None else f"target {target.name} has "
        raise recipe.error(("bits", "scale"), f"{whose}{kind}: the scale {UNTRAINABLE_SCALE}")


def recipe_loss(section: Qat, trust_code: bool) -> CustomLoss | None:
    """Return the loss of the user's own, if the recipe names one."""
    if section.loss is None:
        return None
    return custom_loss(section.loss, section.code, trust_code)


def check_loss_labels(section: Qat, data: Dataset) -> None:
    """Raise DataError for labels that no tensor holds."""
    labels = data.labels
    if section.loss is not None and labels is not None and labels.dtype.kind not in "iuf":
        raise DataError(f"qat.loss: labels of {section.where} are {labels.dtype}; expected numbers")


def check_output_gradient(section: Qat, output: ir.Value, share: float) -> None:
    """Raise DataError where the loss reads a first output that has no gradient.

    Args:
        section: the recipe's ``qat``.
        output: the model's first.
        share: of the loss that is the float network's.
    """
    is_read = section.loss is None or share > 0
    if is_read and output.dtype is not None and not is_float(output):
        raise DataError(
            f"qat: the model's first output is {output.dtype.name.lower()}, expected real numbers, "
            "which have gradients; end the model before it rounds or takes the largest (ArgMax)"
        )


def train_validation_split(
    recipe: Recipe, section: Qat, data: Dataset, seed: int
) -> tuple[Dataset, Dataset]:
    """Return the samples that are trained on, and those that choose the best epoch.

    Args:
        recipe: names the line to change.
        section: the recipe's ``qat``.
        data: its samples.
        seed: of the choice.

    Raises:
        RecipeError: ``qat.validation`` is a share that leaves one of the two empty.
        DataError: there is one sample alone.
    """
    holdout, count = round(section.validation * data.count), data.count
    if count > 1 and not 0 < holdout < count:
        least, most = 1 / count, math.floor(1000 * (count - 1) / count) / 1000
        raise recipe.error(
            ("qat", "validation"),
            f"{section.validation} of {count} samples is {holdout}, expected at least one sample "
            f"to train on and one for validation; write a share from {least:.2g} to {most:g}",
        )
    return split(data, section.validation, seed)
