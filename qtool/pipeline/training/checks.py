"""Refuse training that cannot work: most of it before any work."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import onnx_ir as ir

from qtool.data import Dataset, split
from qtool.errors import DataError, KeyPath
from qtool.graph.queries import is_float
from qtool.pipeline.context import RunOptions
from qtool.pipeline.search.requested import requested_search
from qtool.qat.custom_loss import CustomLoss, custom_loss
from qtool.qat.settings import UNTRAINABLE_DYNAMIC
from qtool.recipe.model import Bits, Recipe
from qtool.recipe.sections.qat import Qat
from qtool.recipe.target_defaults import apply_target_defaults
from qtool.targets.loader import load_target
from qtool.weights import SCHEMES
from qtool.weights.scale_constraints import SCALES

if TYPE_CHECKING:
    from qtool.qat.quantizers.base import Widths


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


def check_rewrites(recipe: Recipe, train: bool) -> None:
    """Raise where a rewrite that only training makes good is requested without it.

    Args:
        recipe: as it was read.
        train: the command trains.

    Raises:
        RecipeError: there is no training, it compares blocks, of which the network has more than
            the teacher, or a search would compare untrained networks.
    """
    if "bireal_shortcuts" not in (recipe.rewrite or ()):
        return
    if not train:
        why = "found bireal_shortcuts, which changes the network; expected training to follow"
        raise recipe.error(("rewrite",), f"{why}: use `qtool qat`, or leave it out")
    if (key := requested_search(recipe).key) is not None:
        why = "compares networks before training, and bireal_shortcuts changes them; remove one"
        raise recipe.error(key, f"the search {why}")
    distill = recipe.qat.distill if recipe.qat is not None else None
    if distill is not None and distill.blocks:
        why = "compares outputs of blocks, of which the teacher lacks those of bireal_shortcuts"
        raise recipe.error(("qat", "distill", "blocks"), f"{distill.blocks:g} {why}; write 0")


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
    """Refuse what the network would refuse after calibration: weights, scales, dynamic grids."""
    places = _layer_widths(recipe.bits)
    _check_weights(recipe, {place: weights for place, (weights, _) in places.items()})
    # The widths of a recipe that a search completes are not known yet.
    if recipe.qat is not None and requested_search(recipe).key is None:
        _check_unread(recipe, recipe.qat, recipe_widths(recipe))
    for place, (_weights, activations) in places.items():
        if activations == "dynamic":
            raise recipe.error((*place, "activations"), f"dynamic: {UNTRAINABLE_DYNAMIC}")
    integers = any("float" not in widths for widths in places.values())
    if integers and has_restricted_scales(recipe) and recipe.qat is not None:
        _check_scales(recipe, recipe.qat)


def _layer_widths(bits: Bits) -> dict[KeyPath, tuple[object, object]]:
    """Return the widths of weights and activations of all layers, by the keys of their place."""
    places: dict[KeyPath, tuple[object, object]] = {("bits",): (bits.weights, bits.activations)}
    for pattern, layer in bits.layers.items():
        widths = (layer.weights or bits.weights, layer.activations or bits.activations)
        places["bits", "layers", pattern] = widths
    return places


def recipe_widths(recipe: Recipe) -> "Widths":
    """Return the bits that a recipe trains; layers with float weights have none.

    Those that a search may lower to 4 bits have them.
    """
    from qtool.qat.quantizers.base import Widths

    if requested_search(recipe).key is not None:
        return Widths(frozenset({4, 8}), frozenset({4, 8}))
    bits = apply_target_defaults(recipe, load_target(recipe.target)).bits
    pairs = [(w, x) for w, x in _layer_widths(bits).values() if isinstance(w, int)]
    activations = frozenset(x for _, x in pairs if isinstance(x, int))
    return Widths(frozenset(w for w, _ in pairs), activations)


def _check_unread(recipe: Recipe, section: Qat, widths: "Widths") -> None:
    """Refuse options that change nothing at these widths.

    Args:
        recipe: with the scheme of its quantizer where it names none.
        section: its ``qat``.
        widths: of all layers.
    """
    from qtool.qat.quantizers import QAT_QUANTIZERS
    from qtool.qat.quantizers.base import WeightModule, learned_parameters
    from qtool.qat.quantizers.trainable import sample_grids, weights_learn

    name, options = section.quantizer.name, section.quantizer.options
    entry, scheme = QAT_QUANTIZERS[name], recipe.bits.scheme
    for option, reader in entry.unread(options, widths).items():
        why = f"has no effect without {reader}; leave it out"
        raise recipe.error(("qat", "quantizer", name, option), why)
    if scheme.options and not entry.reads_scheme:
        why = f"quantizer {name} computes its levels from the weights and reads no options of it"
        raise recipe.error(("bits", "scheme"), f"{scheme.name}: {why}; leave them out")
    grids = sample_grids(section.quantizer.build(QAT_QUANTIZERS), widths)
    if section.scale_lr is not None and not any(learned_parameters(g, False) for g in grids):
        why = f"no scale of quantizer {name} learns at these widths; leave it out"
        raise recipe.error(("qat", "scale_lr"), why)
    decaying = (g.decays or (isinstance(g, WeightModule) and weights_learn(g)) for g in grids)
    decay = section.weight_decay
    if decay != Qat.model_fields["weight_decay"].default and not any(decaying):
        why = f"quantizer {name} with these options leaves the weights as they are; leave it out"
        raise recipe.error(("qat", "weight_decay"), f"{decay:g}: {why}")
    if section.extra_bits and not any(g.refines and g.params.spec.bits < 8 for g in grids):
        why = f"quantizer {name} has no grids with equal steps of less than 8 bits; leave it out"
        raise recipe.error(("qat", "extra_bits"), f"{section.extra_bits}: {why}")


def scale_kind(recipe: Recipe) -> str:
    """Return the form of scales that the recipe or its target requests."""
    scale = recipe.bits.scale
    return load_target(recipe.target).scale if scale is None else scale.build(SCALES).kind


def has_restricted_scales(recipe: Recipe) -> bool:
    """Return whether scales have a fixed form."""
    return scale_kind(recipe) != "float"


def _check_scales(recipe: Recipe, section: Qat) -> None:
    """Refuse scales of a fixed form that training would not keep."""
    from qtool.qat.quantizers import QAT_QUANTIZERS

    name, kind = section.quantizer.name, scale_kind(recipe)
    if recipe.bits.scale is None:
        kind = f"target {load_target(recipe.target).name} has {kind}"
    if not QAT_QUANTIZERS[name].restricts_scales:
        others = [n for n, entry in QAT_QUANTIZERS.items() if entry.restricts_scales]
        raise recipe.error(
            ("bits", "scale"),
            f"{kind}: scales of quantizer {name} follow from several learned numbers; expected "
            f"float, or one of the quantizers {', '.join(others)}",
        )
    if section.batchnorm != "folded":
        why = f"{section.batchnorm}: folding BatchNorm after training changes scales ({kind})"
        raise recipe.error(("qat", "batchnorm"), f"{why}; write batchnorm: folded")
    if section.oscillation is not None and section.oscillation.freeze is not None:
        why = f"frozen weights follow their scale, which changes in jumps ({kind})"
        raise recipe.error(("qat", "oscillation", "freeze"), f"{why}; leave it out")


def _check_weights(recipe: Recipe, widths: Mapping[KeyPath, object]) -> None:
    """Refuse weights that the quantizer does not train.

    Args:
        recipe: with the scheme of its quantizer where it names none.
        widths: of weights, by the keys of their place.
    """
    from qtool.qat.quantizers import QAT_QUANTIZERS
    from qtool.qat.quantizers.trainable import trained_widths

    name, scheme = "lsq" if recipe.qat is None else recipe.qat.quantizer.name, recipe.bits.scheme
    entry = QAT_QUANTIZERS[name]
    if scheme.name != entry.scheme:
        others = [n for n, other in QAT_QUANTIZERS.items() if other.scheme == scheme.name]
        raise recipe.error(
            ("bits", "scheme"),
            f"{scheme.name}: quantizer {name} trains {entry.scheme} weights; expected scheme: "
            f"{entry.scheme}, or one of the quantizers {', '.join(others)}",
        )
    if recipe.calibrate.weights is not None and entry.scheme != "uniform":
        why = f"ranges are estimated for equal steps, {name} trains {entry.scheme} weights"
        raise recipe.error(("calibrate", "weights"), f"{why}; leave one of the two out")
    trained = trained_widths(entry)
    low = {place: bits for place, bits in widths.items() if isinstance(bits, int) and bits < 8}
    for place, bits in low.items():
        if bits not in trained:
            others = [n for n, other in QAT_QUANTIZERS.items() if bits in trained_widths(other)]
            listed = ", ".join(map(str, sorted(trained)))
            raise recipe.error(
                (*place, "weights"),
                f"{bits}: quantizer {name} trains weights of {listed} or 8 bits and more; expected "
                f"these, or one of the quantizers {', '.join(others)}",
            )
    if SCHEMES[entry.scheme].low_bit_only and not low:
        raise recipe.error(
            ("qat", "quantizer"),
            f"{name} is for weights of less than 8 bits, and there are none; set bits.weights",
        )


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
    """Raise DataError where the loss reads an output that has no gradient.

    Args:
        section: the recipe's ``qat``.
        output: that is compared; integers where the model has no output of floats.
        share: of the loss that is the float network's.
    """
    is_read = section.loss is None or share > 0
    if is_read and output.dtype is not None and not is_float(output):
        raise DataError(
            f"qat: the model's output {output.name} is {output.dtype.name.lower()}, expected one "
            "of real numbers, which have gradients; end the model before it rounds or takes the "
            "largest (ArgMax)"
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
