"""Load a float network: the first function of the Python API."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from qtool.data import InputSpec
from qtool.data.inputs import constant_arrays
from qtool.errors import ModelError, RecipeError
from qtool.loading import Loaded
from qtool.loading.branches import choose_branches
from qtool.pipeline.inputs.specs import input_specs
from qtool.pipeline.load_model import load_any
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.sections.network import (
    ModelInput,
    OnnxModel,
    TorchModel,
    as_torch,
    carries_code,
)

if TYPE_CHECKING:
    from torch import nn


OPSET = 21


@dataclass(frozen=True, eq=False)
class Model:
    """A float network, as :func:`load` read it. Quantizing does not change it.

    Attributes:
        name: what it was loaded from.
        path: the float ONNX file; of a torch network a temporary one, which lives as long as this.
        sha256: digest of what it was loaded from.
        inputs: by name, in order, with shape and dtype.
        outputs: names, in order.
        notes: what loading changed or found, such as the difference between torch and ONNX.
    """

    name: str
    path: Path
    sha256: str
    inputs: Mapping[str, InputSpec]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    _graph: ir.Model = field(repr=False)


def load(
    source: "str | Path | Mapping[str, Any] | nn.Module",
    inputs: Any = None,
    *,
    trust_code: bool = False,
    requantize: bool = False,
) -> Model:
    """Read a float network.

    Args:
        source: an ONNX, ``.pt2`` or TorchScript ``.pt`` file; what a recipe says under ``model``,
            such as ``{"torch": "nets:one", "weights": FILE, "input": {"x": ["N", 3, 8, 8]}}``
            with paths relative to the working directory; or a torch module.
        inputs: for a torch module: one example tensor, several in a tuple, or a mapping of names
            to tensors. Their first dimension, the batch, stays dynamic.
        trust_code: allow files and mappings that run code of their own to do so.
        requantize: turn an ONNX file that is quantized already back to floats first.

    Raises:
        ModelError: the file, the mapping or the module is wrong.
        RecipeError: it runs code and is not trusted, or the mapping has wrong keys.
        UnsupportedError: torch cannot export it, it is quantized already, or its quantization
            cannot be turned back.
    """
    if not isinstance(source, str | Path | Mapping):
        if requantize:
            raise ModelError("requantize: found a torch module, expected an ONNX file")
        return _from_module(source, inputs)
    if inputs is not None:
        raise ModelError("inputs: only a torch module needs examples; leave them out")
    named: Any = dict(source) if isinstance(source, Mapping) else str(source)
    data = {"model": named, "calibrate": {"arrays": "in memory"}}
    model = recipe_from_keywords(data, "qtool.load", Path.cwd(), files=False).model
    if carries_code(model) and not (trust_code or requantize):
        raise RecipeError(
            f"qtool.load: loading {as_torch(model).torch} runs the code it holds; read it first, "
            "then pass trust_code=True"
        )
    declared = model.input if isinstance(model, OnnxModel | TorchModel) else {}
    return _with_temporary_file(
        lambda path: load_any(model, lambda parts: path, OPSET, requantize=requantize), declared
    )


def _from_module(module: Any, inputs: Any) -> Model:
    from torch import nn

    from qtool.loading.pytorch.loader import export_to, inputs_like

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"qtool.load: found a {type(module).__name__}, expected a path, a mapping as under "
            "`model` in a recipe, or a torch.nn.Module"
        )
    if inputs is None:
        raise ModelError("qtool.load: a torch module needs `inputs`: one example of each")
    return _with_temporary_file(
        lambda path: export_to(module, inputs_like(module, inputs), path, OPSET)
    )


def _with_temporary_file(
    export: Callable[[Path], Loaded], declared: Mapping[str, ModelInput] | None = None
) -> Model:
    """Return a model whose ONNX file lies in a folder that is removed with the model."""
    folder = tempfile.mkdtemp(prefix="qtool-")
    try:
        model = _model(export(Path(folder) / "float.onnx"), declared)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def _model(loaded: Loaded, declared: Mapping[str, ModelInput] | None) -> Model:
    graph = loaded.model
    inputs, notes = input_specs(graph, loaded.shown, declared)
    chosen = choose_branches(graph, constant_arrays(inputs, 1))
    return Model(
        loaded.shown,
        loaded.path,
        loaded.sha256,
        inputs,
        tuple(str(v.name) for v in graph.graph.outputs),
        (*loaded.notes, *notes, *chosen),
        graph,
    )
