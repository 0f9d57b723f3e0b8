"""The recipe's ``qat`` section: the data of the training and its settings."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from qtool.data.config import READER_KEYS, DataSection
from qtool.recipe.choice import Choice, NamedChoice
from qtool.recipe.sections.network import Part
from qtool.user_code import is_function_name


class Distill(Part):
    """The float network as teacher: loss = (1 - weight) * labels + weight * teacher."""

    weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the teacher; 1: labels are not used."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens both distributions before they are compared."""
    blocks: Annotated[float, Field(ge=0)] = 0.0
    """Factor on the squared error of block outputs, relative to the float network's; 0: none."""


class Augment(Part):
    """Random changes of training images."""

    crop: Annotated[int, Field(ge=0)] = 0
    """Shift by up to so many pixels; the border is black, or 0 where there is no preprocess."""
    flip: bool = False
    """Mirror every second image left and right."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Change brightness, contrast and saturation by a random factor up to so far from 1."""
    mixup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the images that are blended with another one, and so are their labels."""
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the images that get a box of another one, and its label by the box's area."""

    @property
    def mixes(self) -> bool:
        """True where any image is mixed with another one."""
        return self.mixup + self.cutmix > 0

    @model_validator(mode="after")
    def _one_way_to_mix(self) -> "Augment":
        if self.mixup + self.cutmix > 1:
            both = self.mixup + self.cutmix
            raise ValueError(
                f"found mixup and cutmix of {both:g} of the images together, expected at most 1"
            )
        return self


class Oscillation(Part):
    """Weights of at most 4 bits whose codes jump to and fro: counted, dampened, frozen, paced."""

    dampen: Annotated[float, Field(ge=0)] = 0.0
    """Add so many times the squared distance of weights to their rounded values to the loss."""
    freeze: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fix weights that jump back in more than this share of steps; begins at 0.1; absent: none."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Weight of the newest step in that share."""
    transitions: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the codes that shall change in a step at first: the rate of weights adapts to it."""


# Keys of a data section that say which samples it has, and how they become inputs.
SAMPLE_KEYS = (*READER_KEYS, "code", "take", "preprocess", "labels", "classes", "loop")


def with_calibration_samples(
    qat: Mapping[str, Any], calibrate: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a ``qat`` section that trains on the data of ``calibrate`` where it names none.

    All samples of that data train, also where ``calibrate.count`` is smaller.

    Args:
        qat: as in YAML.
        calibrate: as in YAML; made-up samples are not trained on.
    """
    if any(key in qat for key in READER_KEYS) or calibrate.get("synthetic") is not None:
        return dict(qat)
    return {**{key: calibrate[key] for key in SAMPLE_KEYS if key in calibrate}, **qat}


class Qat(DataSection):
    """The training data and the settings of the training; used by `qtool qat` alone."""

    model_config = Part.model_config

    quantizer: NamedChoice = Choice(name="lsq")
    """The way grids learn: a name of `qtool list quantizers`, or one with options."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the samples, in random order; a last batch that is not full is left out of its
    pass."""
    batch: Annotated[int, Field(ge=1)] = 128
    """Samples of one step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with Nesterov momentum 0.9."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Peak learning rate; it falls along the schedule."""
    schedule: Literal["cosine", "exponential"] = "cosine"
    """Of the rates: half a cosine to 0, or exponentially to 1/1500."""
    scale_lr: Annotated[float, Field(ge=0)] | None = None
    """Peak learning rate of scales; absent: lr / 100."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of weights alone."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Epochs in which the rate rises."""
    clip: Annotated[float, Field(ge=0)] | None = None
    """Largest norm of the gradient of all parameters together; 0: any. Absent: any where BatchNorm
    learns with statistics of the batch, else 1."""
    extra_bits: Annotated[int, Field(ge=0, le=6)] = 0
    """Gradual lowering: grids of less than 8 bits start with so many bits more, over the same
    range, and lose one after each equal part of the first half of training."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products while training; grids and losses are always float32."""
    batchnorm: Literal["live", "frozen", "folded"] = "live"
    """Statistics of the batch, of the float network, or none: BatchNorm stays in the weights."""
    loss: str | None = None
    """module:function of your own instead of cross entropy; needs --trust-code."""
    distill: Distill | None = None
    """A teacher; absent: labels alone, or without labels the teacher alone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every label spread over all classes alike."""
    augment: Augment = Augment()
    """Random changes of images."""
    oscillation: Oscillation | None = None
    """Count oscillating weights, dampen them, freeze them; absent: none of it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and write a moving average of the network; each step keeps so much of it."""
    tensorboard: bool = False
    """Write event files into the run folder's tensorboard folder; needs qtool[tensorboard]."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the samples set aside as holdout, class by class, to choose the best epoch."""

    @field_validator("quantizer")
    @classmethod
    def _has_no_extra_bits(cls, quantizer: Choice) -> Choice:
        bits = quantizer.options.get("extra_bits")
        if bits is not None:
            name = quantizer.name
            raise ValueError(
                f"found extra_bits among the options of {name}, expected it beside quantizer, for "
                f"any of them; write qat: {{quantizer: {name}, extra_bits: {bits}}}"
            )
        return quantizer

    @field_validator("loss")
    @classmethod
    def _names_a_function(cls, loss: str | None) -> str | None:
        if loss is not None and not is_function_name(loss):
            raise ValueError(f'found "{loss}", expected module:function, such as mine:focal')
        return loss
