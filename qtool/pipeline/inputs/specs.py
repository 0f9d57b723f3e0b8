"""The inputs that data must feed: by the model's file, the recipe and the data."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.data import READERS, InputSpec, fit_batch_axes
from qtool.data.batch_axes import axes_of_model
from qtool.data.inputs import fixed_batch
from qtool.errors import ModelError, RecipeError, UnsupportedError
from qtool.graph.queries import dims
from qtool.loading import Loaded
from qtool.pipeline.input_checks import check_first_output
from qtool.pipeline.inputs.calls import feed_files_whole
from qtool.pipeline.inputs.streams import check_loop, with_next_states
from qtool.recipe.model import Recipe
from qtool.recipe.sections.network import ModelInput, OnnxModel, TorchModel


def recipe_inputs(recipe: Recipe, loaded: Loaded) -> tuple[dict[str, InputSpec], list[str]]:
    """Return the model's inputs, by the file, the recipe and the data, and notes.

    Args:
        recipe: names the data, and what it says of the inputs.
        loaded: the model.

    Raises:
        QtoolError: the model has no such inputs or outputs, or the data does not fit them.
    """
    model, section = recipe.model, recipe.calibrate
    if READERS[section.reader].synthetic and recipe.evaluate is not None:
        section = recipe.evaluate
    declared = model.input if isinstance(model, OnnxModel | TorchModel) else {}
    inputs, notes = input_specs(loaded.model, loaded.shown, declared)
    for key, part in (("calibrate", recipe.calibrate), ("evaluate", recipe.evaluate)):
        if part is not None and part.loop is not None:
            try:
                check_loop(part, loaded.model, inputs)
            except RecipeError as error:
                raise recipe.error((key, "loop"), error.text) from error
    fitted, more = fit_batch_axes(section, inputs)
    said = {name for name, each in declared.items() if each.batch_axis is not None}
    inputs |= {name: spec for name, spec in fitted.items() if name not in said}
    if not said:
        inputs, calls = feed_files_whole(section, loaded.model, inputs)
        more = (*more, *calls)
    check_first_output(loaded.model, loaded.shown, fixed_batch(inputs.values()))
    return inputs, [*notes, *more]


def input_specs(
    model: ir.Model, name: str, declared: Mapping[str, ModelInput] | None = None
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Return the names, shapes, types and batch axes that data must have to feed the model.

    Args:
        model: the float graph.
        name: of the model, for messages.
        declared: what the recipe says of inputs.

    Returns:
        The inputs by name, and notes for the report.

    Raises:
        ModelError: an input has no shape, or not the axis that the recipe names.
        UnsupportedError: there is no input, or one that is no tensor of numbers.
    """
    if not model.graph.inputs:
        raise UnsupportedError(
            f"model {name}: it has no inputs, so no data can calibrate it; export it with the "
            "input that its result depends on"
        )
    own = declared or {}
    specs = {v.name or "": _spec(v, name, own.get(v.name or "")) for v in model.graph.inputs}
    specs = with_next_states(specs, model)
    said = frozenset(key for key, each in own.items() if each.batch_axis is not None)
    return axes_of_model(specs, said)


def _spec(value: ir.Value, name: str, declared: ModelInput | None) -> InputSpec:
    """Return one input with the axis and the constant of the recipe."""
    if isinstance(value.type, ir.SequenceType) or value.dtype in (None, ir.DataType.STRING):
        kind = "text" if value.dtype == ir.DataType.STRING else "no tensor"
        raise UnsupportedError(
            f'model {name}: the input "{value.name}" is {kind}, expected numbers; export the '
            "model without what turns it into tensors"
        )
    shape = dims(value)
    if shape is None:
        raise ModelError(
            f'model {name}: the input "{value.name}" has no known shape; write its sizes into '
            "the recipe, N for the batch and any name for what each batch may choose: "
            f"model: {{onnx: {name}, input: {{{value.name}: [N, 3, 224, 224]}}}}"
        )
    spec = InputSpec(value.name or "", shape, str(value.dtype.numpy()))
    if declared is None:
        return spec
    axis = declared.batch_axis
    if isinstance(axis, int) and axis >= len(shape):
        raise ModelError(
            f"model {name}: the recipe says batch_axis {axis} of the input {spec.describe()}, "
            f"which has {len(shape)} axes; expected one of them, counted from 0, or none"
        )
    spec = replace(spec, constant=declared.constant)
    _check_constant(spec, name)
    if axis is None:
        return spec
    return replace(spec, batch_axis=None if axis == "none" else axis)


def _check_constant(spec: InputSpec, name: str) -> None:
    """Refuse a constant that does not fit its input's shape or type."""
    if spec.constant is None:
        return
    try:
        with np.errstate(over="ignore"):
            rows = spec.constant_rows(1)
        exact = rows == np.asarray(spec.constant)
        fits = bool(np.all(np.isfinite(rows) if rows.dtype.kind == "f" else exact))
    except (ValueError, OverflowError, TypeError):
        fits = False
    if not fits:
        raise ModelError(
            f"model {name}: the constant {spec.constant!r} does not fit the input "
            f"{spec.describe()}; expected finite numbers of its type, in its shape without the "
            "batch axis"
        )
