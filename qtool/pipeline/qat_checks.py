"""What `qtool qat` refuses before it trains: most of it before any work."""

import math
from importlib.util import find_spec

import onnx_ir as ir

from qtool.data import Dataset, split
from qtool.errors import DataError, KeyPath
from qtool.graph.queries import is_float
from qtool.pipeline.prepare import Prepared
from qtool.qat.custom_loss import CustomLoss, custom_loss
from qtool.qat.settings import UNTRAINABLE_CODEBOOK, UNTRAINABLE_DYNAMIC, UNTRAINABLE_SCALE
from qtool.recipe.model import Recipe
from qtool.recipe.qat_section import Qat
from qtool.targets.loader import load_target
from qtool.weights.scale_constraints import SCALES


def refuse_early(recipe: Recipe, trust_code: bool, device: str = "cpu") -> None:
    """Raise for what the recipe's ``qat`` section asks and this run cannot do.

    Args:
        recipe: settled, paths absolute.
        trust_code: whether the recipe may run code of its own.
        device: where it would train.

    Raises:
        RecipeError: the bits give grids that cannot be trained; the loss is not trusted, not there,
            or would not be looked at; TensorBoard is asked for and not installed; the device has
            no bfloat16.
    """
    section = recipe.qat
    _refuse_grids(recipe)
    if section is None:
        return
    if section.precision == "bfloat16" and device != "cpu":
        import torch

        if not torch.cuda.is_bf16_supported(including_emulation=False):
            why = f"found bfloat16, which {torch.cuda.get_device_name()} does not compute with"
            raise recipe.error(("qat", "precision"), f"{why}; expected float32: write that")
    if section.tensorboard and find_spec("tensorboard") is None:
        why = "needs the package tensorboard, which is not installed; expected it"
        raise recipe.error(("qat", "tensorboard"), f"{why}: pip install 'qtool[tensorboard]'")
    if section.loss is None:
        return
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
    custom_loss(section.loss, section.code, trust_code)


def _refuse_grids(recipe: Recipe) -> None:
    """Refuse what QatNetwork would refuse after calibration: code books, scales, dynamic grids."""
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
    asked = target.scale if bits.scale is None else bits.scale.build(SCALES).kind
    if integers and asked != "float":
        whose = "" if bits.scale is not None else f"target {target.name} has "
        raise recipe.error(("bits", "scale"), f"{whose}{asked}: the scale {UNTRAINABLE_SCALE}")


def asked_loss(section: Qat, prepared: Prepared) -> CustomLoss | None:
    """The loss of the user's own, if the recipe names one."""
    if section.loss is None:
        return None
    return custom_loss(section.loss, section.code, prepared.trust_code)


def refuse_own_loss(recipe: Recipe, section: Qat, data: Dataset) -> None:
    """Raise DataError for labels that no tensor holds."""
    labels = data.labels
    if section.loss is not None and labels is not None and labels.dtype.kind not in "iuf":
        raise DataError(f"qat.loss: labels of {section.where} are {labels.dtype}; expected numbers")


def refuse_codes(section: Qat, output: ir.Value, share: float) -> None:
    """Raise DataError where the loss looks at a first output that has no gradient.

    Args:
        section: what is asked for.
        output: the model's first.
        share: of the loss that is the float network's.
    """
    looked_at = section.loss is None or share > 0
    if looked_at and output.dtype is not None and not is_float(output):
        raise DataError(
            f"qat: the model's first output is {output.dtype.name.lower()}, expected real numbers, "
            "which have gradients; end the model before it rounds or takes the largest (ArgMax)"
        )


def parted(recipe: Recipe, section: Qat, data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """What is learned from, and what is held out to choose the best epoch.

    Raises:
        RecipeError: ``qat.validation`` is a share that leaves one of the two empty.
        DataError: there is one sample alone.
    """
    held, count = round(section.validation * data.count), data.count
    if count > 1 and not 0 < held < count:
        least, most = 1 / count, math.floor(1000 * (count - 1) / count) / 1000
        raise recipe.error(
            ("qat", "validation"),
            f"{section.validation} of {count} samples is {held}, expected at least one sample to "
            f"learn from and one to hold out; write a share from {least:.2g} to {most:g}",
        )
    return split(data, section.validation, seed)
