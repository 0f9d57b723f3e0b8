"""The recipe: the YAML of a user as frozen, checked values; errors name the line.

``loader.load_recipe`` reads a file, ``loader.recipe_from_options`` builds the defaults for a run
without one, and ``Recipe.dump`` writes the resolved recipe, which runs again as it is.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    model_validator,
)

from qtool.data import DataSection, Synthetic
from qtool.errors import KeyPath, RecipeError
from qtool.recipe.choice import Choice, NamedChoice
from qtool.recipe.error_messages import describe
from qtool.recipe.presets import read_preset, with_preset
from qtool.recipe.sections.budget import Budget
from qtool.recipe.sections.gates import Bytes, Gates
from qtool.recipe.sections.latency import Latency
from qtool.recipe.sections.network import Model
from qtool.recipe.sections.network import Part as _Part
from qtool.recipe.sections.pruning import Pruning
from qtool.recipe.sections.qat import Qat, with_calibration_samples
from qtool.recipe.yaml_loader import Document, emit
from qtool.targets.target import NEWEST_OPSET


def _refuse_boolean(value: Any) -> Any:
    """Refuse a boolean: True equals 1 in Python, but it is no width."""
    if isinstance(value, bool):
        raise ValueError(f"found {describe(value)}, expected 1 to 16 or float")
    return value


def _expand_preset(value: Any) -> Any:
    """Replace the name of a preset by its steps, and one step by a list of it."""
    if value == "auto" or isinstance(value, Mapping):
        return [value]
    return read_preset(value) if isinstance(value, str) else value


WeightWidth = Annotated[
    Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, "float"],
    BeforeValidator(_refuse_boolean),
]
ActivationWidth = Annotated[
    Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, "float", "dynamic"],
    BeforeValidator(_refuse_boolean),
]


class Calibrate(DataSection):
    """The samples that ranges come from, and the calibrator that chooses the grids."""

    model_config = _Part.model_config

    count: Annotated[int, Field(gt=0)] | None = 512
    """Samples at most, evenly spaced by sorted position."""
    method: NamedChoice = Choice(name="mse")
    """A calibrator, or one with options: {percentile: {q: 0.9999}}; absent: mse, or batchnorm
    where the samples are synthetic."""
    auto_above: Annotated[float, Field(ge=0)] | None = None
    """Distance of the network's output to the float network's, by rounded activations, above which
    `auto` is tried too; absent: 0.01 where no method is named and they have 8 bits or more."""
    weights: NamedChoice | None = None
    """A calibrator for the ranges of weights with equal steps; absent: that of bits.scheme."""

    @model_validator(mode="before")
    @classmethod
    def _method_of_synthetic(cls, value: Any) -> Any:
        """Fill in the method where the samples are synthetic."""
        if isinstance(value, Mapping) and value.get("synthetic") is not None:
            return {"method": "batchnorm", **value}
        return value


class Evaluate(DataSection):
    """The samples both files are evaluated on, and the metric."""

    model_config = _Part.model_config

    metric: str | None = None
    """A name of `qtool list metrics`, or module:function; absent: top1 where there are labels."""
    simulate: Annotated[int, Field(ge=1)] | Literal["all"] = 512
    """Samples that accuracy.simulated is measured on, evenly spread, or all."""
    thumbnails: Annotated[int, Field(ge=0, le=24)] = 0
    """Samples that changed their class, shown in the HTML report as small images."""
    expect: float | None = None
    """The float model's accuracy; where it is not reached within 1 point, a gate fails."""


class LayerBits(_Part):
    """The widths of the layers one pattern matches; an absent width is the recipe's own."""

    weights: WeightWidth | None = None
    """As bits.weights."""
    activations: ActivationWidth | None = None
    """As bits.activations."""

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value
        if value == "dynamic":  # only activations can be
            return {"activations": value}
        return {"weights": value, "activations": value}


class Block(_Part):
    """One scale for so many weights along the reduction."""

    block: Annotated[int, Field(ge=2)]
    """Weights of one output channel that share a scale."""


class Bits(_Part):
    """The requested widths, granularity, scheme and scales."""

    weights: WeightWidth | None = None
    """Width of the weights; 1 is binary; absent: the target's own, mostly 8."""
    activations: ActivationWidth | None = None
    """Width of the activations that layers with weights read; absent: the target's own."""
    granularity: Literal["tensor", "channel"] | Block | None = None
    """One weight scale for each tensor, each output channel, or {block: 32} weights."""
    scheme: NamedChoice = Choice(name="uniform")
    """The map from codes to values in layers below 8 bits: a name of `qtool list schemes`."""
    scale: NamedChoice | None = None
    """Form of the scales: a name of `qtool list scales`, {fixed_point: {width: 16}}; absent: the
    target's own."""
    layers: dict[str, LayerBits] = Field(default_factory=dict)
    """Pattern to widths: first, last, "name:GLOB", "op:TYPE"; the last match wins."""
    budget: Budget | None = None
    """Limits within which widths are chosen layer by layer: {weights: 18%}; a layer that a
    pattern names keeps its widths."""


class Output(_Part):
    """The format of the file that is written."""

    format: Literal["qdq", "qoperator", "qonnx"] | None = None
    """Q/DQ pairs, quantized operators, or Quant nodes; absent: the target's own, mostly qdq."""
    opset: Annotated[int, Field(ge=21, le=NEWEST_OPSET)] | None = None
    """The ONNX opset of the file; absent: the target's own, mostly 21."""
    file: Annotated[str, Field(pattern=r"^[^/\\]+\.onnx$")] = "model.onnx"
    """Name of the file in the run folder, such as net_int8.onnx."""
    io: Literal["float", "quantized"] = "float"
    """Inputs and outputs as values, or as codes; then the file and the report hold their scales."""


class Recipe(_Part):
    """Everything a run does. Paths are absolute once it is loaded."""

    model: Model
    """The float ONNX file, a .pt2 or .pt file, {onnx: FILE, input: ..} or {torch: NAME, ..}."""
    target: str = "onnxruntime-cpu"
    """The runtime: a name of `qtool list targets`, or the path of a .yaml file."""
    calibrate: Calibrate = Calibrate(synthetic=Synthetic(ranges="none"))
    """The samples that ranges come from; absent: where no activation is calibrated."""
    evaluate: Evaluate | None = None
    """The samples both files are evaluated on; absent: agreement with the float model only."""
    bits: Bits = Bits()
    """The requested widths, granularity, scheme and scales."""
    placement: Literal["auto", "all", "conservative"] = "auto"
    """Ops without weights that have integer kernels: all of them, none (conservative), or auto:
    float where the target's kernels gain no time or the outputs gain much accuracy."""
    rewrite: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Rewrites in order; absent: the target's own list. Optional ones alone ([equalize]) are added
    to that list."""
    ptq: Annotated[
        Annotated[tuple[NamedChoice, ...], Field(strict=False)] | None,
        BeforeValidator(_expand_preset),
    ] = None
    """Post-training steps in order, a preset (fast, best, int8, n2d2), or auto, which chooses them;
    [] is plain rounding. Absent: fast where layers have integer weights of fewer than 8 bits or are
    pruned, else int8."""
    pruning: Pruning | None = None
    """Weights that become 0, or channels that are removed; absent: none."""
    qat: Qat | None = None
    """The training data of `qtool qat` and its settings; without data that of calibrate; other
    commands ignore it."""
    gates: Gates = Gates()
    """Limits that decide the exit code."""
    latency: Latency | None = None
    """The runtimes, threads, batches and machine of more timings; absent: ONNX Runtime here."""
    output: Output = Output()
    """The format of the file that is written."""
    memory: Bytes | None = None
    """Memory that a run may use: 2G is 2 GiB; what does not fit goes to temporary files. Absent: as
    much as the machine has."""

    _document: Document | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _with_derived_keys(cls, value: Any) -> Any:
        """Add the keys of a preset; let ``qat`` without a reader take the data of ``calibrate``."""
        if isinstance(value, Mapping):
            value = with_preset(value)
            qat, calibrate = value.get("qat"), value.get("calibrate")
            if isinstance(qat, Mapping) and isinstance(calibrate, Mapping):
                return {**value, "qat": with_calibration_samples(qat, calibrate)}
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # it holds dictionaries

    def dump(self) -> str:
        """Return the recipe as YAML with every default; it loads again to an equal recipe."""
        return emit(self.model_dump(mode="json", exclude_none=True))

    @property
    def notes(self) -> list[str]:
        """Return what was derived from options of the command line, for the report."""
        return [] if self._document is None else [*dict.fromkeys(self._document.notes.values())]

    def error(self, path: KeyPath, text: str) -> RecipeError:
        """Return an error about one key, with its ``file:line``.

        Args:
            path: the keys down to the value, such as ``("bits", "layers", pattern)``.
            text: what was found, what was expected, what to do.
        """
        document = self._document or Document(None, {}, "recipe")
        return document.error(path, text)

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Add ``file:line`` to errors of the block that name a key of the recipe.

        Code that does not hold the recipe raises ``RecipeError(text, key=("bits", "scale"))``.

        Raises:
            RecipeError: as :meth:`error` returns it; errors without a key pass unchanged.
        """
        try:
            yield
        except RecipeError as error:
            if error.key is None or error.place:
                raise
            raise self.error(error.key, error.text) from error
