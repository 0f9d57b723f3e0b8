"""Load the model that a recipe names."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qtool.errors import RecipeError
from qtool.graph.save import save_model
from qtool.loading import Loaded, load_model, load_requantized
from qtool.loading.float16 import was_bfloat16
from qtool.loading.input_shapes import check_input_names, set_input_shapes
from qtool.loading.open_dimensions import had_empty_sizes
from qtool.pipeline.context import RunOptions
from qtool.recipe.model import Recipe
from qtool.recipe.sections.network import (
    OnnxModel,
    TorchModel,
    as_torch,
    carries_code,
)
from qtool.runtime.ort_options import IR_VERSION
from qtool.runtime.ort_session import loads_ir_version
from qtool.steps.stage_cache import StageCache
from qtool.targets.target import Target


def load_from_recipe(
    recipe: Recipe, target: Target, cache: StageCache, options: RunOptions
) -> Loaded:
    """Load the recipe's model; a torch network is exported into the cache's folder first.

    Args:
        recipe: names the model; paths are absolute.
        target: its opset is used where the recipe names none.
        cache: holds the exported file.
        options: trust_code, fresh and requantize are used.

    Raises:
        RecipeError: the model carries code and the run does not trust it.
    """
    with recipe.locate_errors():
        opset = recipe.output.opset or target.opset
        return load_trusted(recipe.model, opset, cache, options)


def load_trusted(
    model: Path | OnnxModel | TorchModel, opset: int, cache: StageCache, options: RunOptions
) -> Loaded:
    """Load a model; one that carries code only where the options trust it.

    Args:
        model: a model as in a recipe, with absolute paths.
        opset: of the loaded model; a newer one of the file stays.
        cache: holds the file that a torch network is exported to.
        options: trust_code, fresh and requantize are used.

    Raises:
        RecipeError: the model carries code and the run does not trust it.
    """
    if carries_code(model) and not options.trust_code:
        raise RecipeError(
            f"loading {as_torch(model).torch} runs the code it holds; read it first, then add "
            "--trust-code",
            key=("model",),
        )
    return load_any(
        model,
        lambda parts: cache.path_for("float", parts, ".onnx"),
        opset,
        options.fresh,
        options.requantize,
    )


def load_any(
    model: Path | OnnxModel | TorchModel,
    place: Callable[[tuple[str, ...]], Path],
    opset: int,
    fresh: bool = False,
    requantize: bool = False,
) -> Loaded:
    """Load an ONNX file, or export and load a torch network whose code is trusted.

    Args:
        model: a model as in a recipe, with absolute paths.
        place: returns the path of an exported file from the texts that the export depends on.
        opset: of the loaded model; a newer one of the file stays.
        fresh: export again even if the file exists.
        requantize: convert a quantized ONNX file to a float model first.

    Raises:
        RecipeError: ``requantize`` and the model is a torch network.
    """

    def read(path: Path) -> Loaded:
        if requantize:
            return load_requantized(path, place, opset)
        return _runnable(load_model(path, opset), place)

    if isinstance(model, Path) and not carries_code(model):
        return read(model)
    if isinstance(model, OnnxModel):
        loaded = read(model.onnx)
        check_input_names(loaded.model, model.input, model.onnx)
        shapes = {n: each.shape for n, each in model.input.items() if each.shape is not None}
        if not shapes:
            return loaded
        note = set_input_shapes(loaded.model, shapes, model.onnx)
        return replace(loaded, notes=(*loaded.notes, note))
    torch = as_torch(model)
    if requantize:
        raise RecipeError(
            f"requantize: found the torch network {torch.torch}, expected an ONNX file; leave the "
            "option out"
        )
    from qtool.loading.pytorch.loader import TensorInput, TorchSource, load_torch

    inputs = tuple(
        TensorInput(n, spec.shape, spec.dtype, spec.constant) for n, spec in torch.input.items()
    )
    return load_torch(
        TorchSource(torch.torch, torch.weights, inputs, torch.code), place, opset, fresh=fresh
    )


def _runnable(loaded: Loaded, place: Callable[[tuple[str, ...]], Path]) -> Loaded:
    """Save a model that ONNX Runtime cannot run as it is; return others unchanged."""
    version = loaded.model.ir_version or 0
    if was_bfloat16(loaded.model):
        note = (
            "bfloat16: the float model is its float32 form, since ONNX Runtime cannot run bfloat16"
        )
    elif had_empty_sizes(loaded.model):
        note = "sizes of 0: the float model is the file with these dimensions open"
    elif version > IR_VERSION and not loads_ir_version(version):
        loaded.model.ir_version = IR_VERSION
        note = (
            f"the installed ONNX Runtime does not load version {version} of the ONNX file format: "
            f"the float model is the file in version {IR_VERSION}"
        )
    else:
        return loaded
    path = place((loaded.sha256, "float32"))
    save_model(loaded.model, path)
    return replace(loaded, path=path, name=loaded.shown, notes=(*loaded.notes, note))
