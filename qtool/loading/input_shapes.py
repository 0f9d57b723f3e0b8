"""Sizes of inputs that the file leaves open, as the recipe gives them."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from qtool.errors import ModelError, suggest
from qtool.graph.queries import dims
from qtool.loading.onnx_loader import infer_shapes


def declare(model: ir.Model, given: Mapping[str, tuple[int | str, ...]], path: Path) -> str:
    """Give inputs the shapes that the recipe says, in place, and infer the others again.

    Args:
        model: as read.
        given: input name -> sizes, the batch first; a name is a dimension of any size.
        path: the file, for messages.

    Returns:
        What was declared, as a note.

    Raises:
        ModelError: there is no such input, or its own shape says otherwise.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    for name, shape in given.items():
        if name not in inputs:
            raise ModelError(
                f'model {path}: `input` names "{name}", but its inputs are {", ".join(inputs)}'
                f"{suggest(name, inputs)}"
            )
        own = dims(inputs[name])
        fits = own is None or (
            len(own) == len(shape)
            and all(
                not isinstance(have, int) or have == want
                for have, want in zip(own, shape, strict=True)
            )
        )
        if not fits:
            raise ModelError(
                f'model {path}: `input` gives "{name}" the shape {_shown(shape)}, but it is '
                f"{_shown(own or ())} in the file; only its open dimensions can be given sizes"
            )
        inputs[name].shape = ir.Shape(shape)
    infer_shapes(model)
    return "inputs: " + ", ".join(f"{name} {_shown(shape)}" for name, shape in given.items())


def _shown(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
