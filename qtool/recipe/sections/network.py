"""The recipe's model: a file, an ONNX file with sizes, or a torch network and how to call it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

Dtype = Literal[
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]
FILES = (".pt2", ".pt")
"""Suffixes of ``torch.export.save`` and ``torch.jit.save``: files with a network and its code."""


class Part(BaseModel):
    """Base of every part of a recipe: frozen, strict types, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _shape(value: Any) -> Any:
    """Check a list as a shape; return anything else as it is, for pydantic to refuse."""
    if not isinstance(value, list | tuple):
        return value
    for dim in value:
        whole = isinstance(dim, int) and not isinstance(dim, bool) and dim > 0
        if not whole and not (isinstance(dim, str) and dim.isidentifier()):
            raise ValueError(
                f"found {dim!r} in a shape, expected sizes from 1, or names for dimensions of any "
                "size: [N, 3, 32, 32]"
            )
    return tuple(value)


Shape = Annotated[tuple[int | str, ...], BeforeValidator(_shape)]


def _constant(value: Any) -> Any:
    """Return numbers, also in nested lists, as numbers in nested tuples."""
    if isinstance(value, list | tuple):
        parts = tuple(_constant(part) for part in value)
        lengths = {len(part) if isinstance(part, tuple) else -1 for part in parts}
        if len(lengths) == 1:
            return parts
    elif isinstance(value, int | float):
        return value
    raise ValueError(f"found {value!r}, expected a number, or lists of numbers of equal length")


Constant = Annotated[
    Any, BeforeValidator(_constant), WithJsonSchema({"type": ["number", "boolean", "array"]})
]


class ModelInput(Part):
    """One input of a model; its shape alone is enough: [N, 3, 32, 32]."""

    shape: Shape | None = None
    """Sizes; a name such as N for a dimension of any size. Absent: those of the file."""
    batch_axis: Annotated[int, Field(ge=0)] | Literal["none"] | None = None
    """The axis that counts the samples; none: one array for all samples of a call. Absent: the
    first, unless names, sizes or the data show another."""
    constant: Constant | None = None
    """A number, or lists of numbers, that every call reads; the data need not have it."""

    @model_validator(mode="before")
    @classmethod
    def _shape_is_enough(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and not value:
            raise ValueError("found an empty shape, expected the batch first: [N, 3, 32, 32]")
        return {"shape": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _axis_exists(self) -> "ModelInput":
        axis, shape = self.batch_axis, self.shape
        if isinstance(axis, int) and shape is not None and axis >= len(shape):
            raise ValueError(f"batch_axis is {axis}, but the shape has {len(shape)} axes, from 0")
        return self

    @model_serializer(mode="wrap")
    def _to_yaml(self, serialize: SerializerFunctionWrapHandler) -> Any:
        keys = {key: value for key, value in serialize(self).items() if value is not None}
        if keys.get("dtype") == "float32":
            del keys["dtype"]
        return keys["shape"] if set(keys) == {"shape"} else keys


class TorchInput(ModelInput):
    """One input of a torch network; its shape alone is enough: [N, 3, 32, 32]."""

    shape: Shape
    """Sizes, the batch first; a name such as N for a dimension of any size."""
    dtype: Dtype = "float32"
    """The element type."""


class OnnxModel(Part):
    """An ONNX file, and what it does not say of its inputs: sizes, batch axes, constants."""

    onnx: Annotated[Path, Field(strict=False)]
    """The float ONNX file."""
    input: dict[str, ModelInput] = Field(default_factory=dict)
    """Input to its shape, or {shape: .., batch_axis: .., constant: ..}."""


class TorchModel(Part):
    """A torch network: your own code or a file that holds code, so it needs --trust-code."""

    torch: str
    """module:factory, a function that returns the network; or a .pt2 or TorchScript .pt file."""
    weights: Annotated[Path, Field(strict=False)] | None = None
    """A .safetensors file or a saved state dict; absent: the parameters that the factory made."""
    input: dict[str, TorchInput] = Field(default_factory=dict)
    """Input to its shape, or {shape: ..., dtype: ...}, in the order of `forward`."""
    code: Annotated[Path, Field(strict=False)] | None = None
    """The folder the module is looked for in before sys.path; absent: the recipe's own."""

    @field_validator("torch")
    @classmethod
    def _names_something(cls, torch: str) -> str:
        module, _, factory = torch.partition(":")
        if torch.endswith(FILES) or (module and factory and ":" not in factory):
            return torch
        raise ValueError(
            f'found "{torch}", expected "module:factory", or a file that ends in .pt2 or .pt'
        )

    @model_validator(mode="after")
    def _fits(self) -> "TorchModel":
        if self.torch.endswith(FILES):
            if self.weights is not None:
                raise ValueError("a .pt2 or .pt file holds its weights; remove `weights`")
            if self.torch.endswith(".pt2") and self.input:
                raise ValueError("a .pt2 file has its inputs; remove `input`")
        elif not self.input:
            raise ValueError(
                "the network's inputs are missing; add `input: {input: [N, 3, 32, 32]}`, N being "
                "a dimension of any size"
            )
        return self


def _form(value: Any) -> str:
    """Return the tag of the model's form."""
    if isinstance(value, OnnxModel) or (isinstance(value, dict) and "onnx" in value):
        return "with sizes"
    return "a network" if isinstance(value, dict | TorchModel) else "a file"


Model = Annotated[
    Annotated[Path, Field(strict=False), Tag("a file")]
    | Annotated[OnnxModel, Tag("with sizes")]
    | Annotated[TorchModel, Tag("a network")],
    Discriminator(_form),
]


def carries_code(model: "Path | OnnxModel | TorchModel") -> bool:
    """Return whether loading the model can run code of its own."""
    return isinstance(model, TorchModel) or (isinstance(model, Path) and model.suffix in FILES)


def as_torch(model: "Path | OnnxModel | TorchModel") -> TorchModel:
    """Return a torch file that is named by its path alone as a :class:`TorchModel`."""
    return model if isinstance(model, TorchModel) else TorchModel(torch=str(model))
