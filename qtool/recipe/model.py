"""The recipe: what a user writes in YAML, read into frozen values with errors that name the line.

``load_recipe`` reads a file, ``recipe_from_options`` builds the defaults for a run without one, and
``Recipe.dump`` writes the resolved recipe, which runs again as it is.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    model_validator,
)

from qtool.data.config import DataSection
from qtool.errors import RecipeError
from qtool.recipe.choice import Choice, NamedChoice
from qtool.recipe.error_messages import describe
from qtool.recipe.network import Model
from qtool.recipe.network import Part as _Part
from qtool.recipe.qat_section import Qat
from qtool.recipe.yaml_loader import Document, emit
from qtool.recipe.yaml_loader import Path as KeyPath
from qtool.targets.target import NEWEST_OPSET


def _no_truth(found: Any) -> Any:
    """True equals 1 in Python, but it is no width."""
    if isinstance(found, bool):
        raise ValueError(f"found {describe(found)}, expected 1 to 16 or float")
    return found


WeightWidth = Annotated[
    Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, "float"],
    BeforeValidator(_no_truth),
]
ActivationWidth = Annotated[
    Literal[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, "float", "dynamic"],
    BeforeValidator(_no_truth),
]


class Calibrate(DataSection):
    """The samples that ranges come from, and the calibrator that chooses the grids."""

    model_config = _Part.model_config

    count: Annotated[int, Field(gt=0)] | None = 512
    """How many samples at most, evenly spaced by sorted position."""
    method: NamedChoice = Choice(name="mse")
    """A calibrator, or one with options: {percentile: {q: 0.9999}}."""


class Evaluate(DataSection):
    """The samples both files are judged on, and the metric."""

    model_config = _Part.model_config

    metric: str | None = None
    """A name of `qtool list metrics`, or module:function; absent: top1 where there are labels."""
    simulate: Annotated[int, Field(ge=1)] | Literal["all"] = 512
    """Samples that accuracy.simulated is measured on, evenly spread, or all."""


class LayerBits(_Part):
    """The widths of the layers one pattern matches; an absent width is the recipe's own."""

    weights: WeightWidth | None = None
    activations: ActivationWidth | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, found: Any) -> Any:
        if isinstance(found, Mapping):
            return found
        if found == "dynamic":  # weights are no such thing
            return {"activations": found}
        return {"weights": found, "activations": found}


class Block(_Part):
    """One scale for so many weights along the reduction."""

    block: Annotated[int, Field(ge=2)]


class Bits(_Part):
    """Which grids are asked for."""

    weights: WeightWidth | None = None
    """Width of the weights; 1 is binary; absent: the target's own, mostly 8."""
    activations: ActivationWidth | None = None
    """Width of the activations that layers with weights read; absent: the target's own."""
    granularity: Literal["tensor", "channel"] | Block | None = None
    """One weight scale for each tensor, each output channel, or {block: 32} weights."""
    scheme: NamedChoice = Choice(name="uniform")
    """How the codes of layers below 8 bits map to values: a name of `qtool list schemes`."""
    scale: NamedChoice | None = None
    """Form of the scales: a name of `qtool list scales`, {fixed_point: {width: 16}}; absent: the
    target's own."""
    layers: dict[str, LayerBits] = Field(default_factory=dict)
    """Pattern to widths: first, last, "name:GLOB", "op:TYPE"; the last match wins."""


class Gates(_Part):
    """Limits that decide the exit code; an absent one is not checked."""

    max_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest accuracy drop, in percentage points; needs evaluate."""
    min_compression: Annotated[float, Field(gt=0)] | None = None
    """Smallest ratio of float to quantized bytes."""
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    """Smallest ratio of float to quantized latency."""


class Output(_Part):
    """The form of the file that is written."""

    format: Literal["qdq", "qoperator", "qonnx"] | None = None
    """Q/DQ pairs, quantized operators, or Quant nodes; absent: the target's own, mostly qdq."""
    opset: Annotated[int, Field(ge=21, le=NEWEST_OPSET)] | None = None
    """The ONNX opset of the file; absent: the target's own, mostly 21."""
    io: Literal["float", "quantized"] = "float"
    """Inputs and outputs as values, or as codes whose scales the file and the report say."""


class Recipe(_Part):
    """Everything a run is asked to do. Paths are absolute once it is loaded."""

    model: Model
    """The float ONNX file, a .pt2 or .pt file, {onnx: FILE, input: ..} or {torch: NAME, ..}."""
    target: str = "onnxruntime-cpu"
    """The runtime: a name of `qtool list targets`, or the path of a .yaml file."""
    calibrate: Calibrate
    """The samples that ranges come from."""
    evaluate: Evaluate | None = None
    """The samples both files are judged on; absent: agreement with the float model only."""
    bits: Bits = Bits()
    """Which grids are asked for."""
    rewrite: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Rewrites in order; absent: the target's own list. Optional ones alone ([equalize]) are added
    to that list."""
    ptq: Annotated[tuple[NamedChoice, ...], Field(strict=False)] = ()
    """Post-training steps in order."""
    qat: Qat | None = None
    """What `qtool qat` learns from, and how; other commands leave it alone."""
    gates: Gates = Gates()
    """Limits that decide the exit code."""
    output: Output = Output()
    """The form of the file that is written."""

    _document: Document | None = PrivateAttr(None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # it holds dictionaries

    def dump(self) -> str:
        """The recipe as YAML with every default written out; it loads again to an equal recipe."""
        return emit(self.model_dump(mode="json", exclude_none=True))

    def error(self, path: KeyPath, text: str) -> RecipeError:
        """An error about one key, with its ``file:line``.

        Args:
            path: the keys down to the value, such as ``("bits", "layers", pattern)``.
            text: what was found, what was expected, what to do.
        """
        document = self._document or Document(None, {}, "recipe")
        return document.error(path, text)
