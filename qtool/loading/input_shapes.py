"""Sizes for symbolic dimensions of inputs, as set in the recipe."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from qtool.errors import ModelError, suggest
from qtool.graph.queries import dims
from qtool.loading.onnx_loader import infer_shapes


def check_input_names(model: ir.Model, names: Iterable[str], path: Path) -> None:
    """Refuse names in the recipe that the model does not have.

    Args:
        model: the loaded graph.
        names: of inputs.
        path: of the model, for messages.

    Raises:
        ModelError: there is no such input.
    """
    inputs = [value.name or "" for value in model.graph.inputs]
    for name in names:
        if name not in inputs:
            raise ModelError(
                f'model {path}: `input` names "{name}", but its inputs are {", ".join(inputs)}'
                f"{suggest(name, inputs)}"
            )


def set_input_shapes(
    model: ir.Model, shapes: Mapping[str, tuple[int | str, ...]], path: Path
) -> str:
    """Set the shapes of inputs, in place, and run shape inference again.

    Args:
        model: the loaded graph.
        shapes: input name -> sizes, the batch first; a string names a symbolic dimension.
        path: of the model, for messages.

    Returns:
        A note that lists the shapes.

    Raises:
        ModelError: there is no such input, or a size contradicts a static dimension.
    """
    check_input_names(model, shapes, path)
    inputs = {value.name or "": value for value in model.graph.inputs}
    for name, shape in shapes.items():
        own = dims(inputs[name])
        fits = own is None or (
            len(own) == len(shape)
            and all(
                not isinstance(static, int) or static == size
                for static, size in zip(own, shape, strict=True)
            )
        )
        if not fits:
            raise ModelError(
                f'model {path}: `input` gives "{name}" the shape {_format_shape(shape)}, but it is '
                f"{_format_shape(own or ())} in the file; only its open dimensions can be given "
                "sizes"
            )
        inputs[name].shape = ir.Shape(shape)
    infer_shapes(model)
    return "inputs: " + ", ".join(
        f"{name} {_format_shape(shape)}" for name, shape in shapes.items()
    )


def _format_shape(shape: tuple[int | str | None, ...]) -> str:
    """Format a shape, with ? for dimensions without size or name."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
