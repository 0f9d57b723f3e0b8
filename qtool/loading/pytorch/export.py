"""Export of a torch module to an ONNX graph in eval mode, with BatchNorm and module paths as names.

The exporter built on torch.export is tried first, then the older one that traces. Constant folding
is off in both, so that BatchNorm stays and PTQ and QAT start from one graph. Both give nodes the
same names.
"""

import ast
import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from qtool.errors import UnsupportedError
from qtool.loading.pytorch.example_inputs import TensorInput
from qtool.native_output import discard_native_stdout

SCOPES = "pkg.torch.onnx.name_scopes"  # node metadata with the path of the module
TRACED_OPSET = 20  # the newest that the tracing exporter supports
TRACING = "tracing"
EXPORTERS = ("torch.export", TRACING)  # in the order in which they are tried


@contextlib.contextmanager
def quiet(swallow: bool = False) -> Iterator[None]:
    """Redirect what a block prints to stderr, since stdout is for results.

    Args:
        swallow: discard it instead, together with log messages and output of C++ code; for the
            progress messages of the exporters.
    """
    with contextlib.ExitStack() as stack:
        target = io.StringIO() if swallow else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(target))
        if swallow:
            stack.enter_context(contextlib.redirect_stderr(target))
            stack.enter_context(discard_native_stdout())
            before = logging.root.manager.disable
            logging.disable(logging.CRITICAL)
            stack.callback(logging.disable, before)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode without gradients; restore the mode of every submodule after."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def export_module(
    module: nn.Module,
    inputs: Sequence[TensorInput],
    feeds: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    by_keyword: bool,
    exporters: Sequence[str] = EXPORTERS,
) -> tuple[ir.Model, list[str]]:
    """Export a module with the first exporter that succeeds.

    Args:
        module: in eval mode.
        inputs: of the module; named dimensions stay dynamic.
        feeds: example tensors by input name.
        outputs: names of the outputs.
        by_keyword: whether ``forward`` has a parameter with the name of each input.
        exporters: of EXPORTERS, in the order to try them; a scripted module is only traced.

    Returns:
        The graph, and a note if the tracing exporter was needed.

    Raises:
        UnsupportedError: all exporters fail.
    """
    call = _Call(
        module,
        () if by_keyword else tuple(feeds.values()),
        dict(feeds) if by_keyword else {},
        inputs,
        {"input_names": list(feeds), "output_names": list(outputs)},
    )
    if isinstance(module, torch.jit.ScriptModule):
        exporters = [name for name in exporters if name == TRACING]
    failed: dict[str, Exception] = {}
    for name in exporters:
        try:
            model = _export_by_tracing(call) if name == TRACING else _export_by_dynamo(call)
        # The exporters raise types of their own, and whatever the module raises.
        except Exception as error:
            failed[name] = error
            continue
        return model, [
            f"exported by tracing, because the exporter built on torch.export failed: "
            f"{first_line(error)}; Python control flow of the network is fixed to one case"
            for error in failed.values()
        ]
    reasons = "; ".join(f"{name}: {first_line(error)}" for name, error in failed.items())
    raise UnsupportedError(
        f"torch cannot export the network to ONNX ({reasons}); "
        "change the module, or export it yourself and give the .onnx file"
    ) from next(reversed(failed.values()), None)


@dataclass(frozen=True)
class _Call:
    """The arguments of an export.

    Attributes:
        module: to export.
        args: positional arguments of ``forward``.
        kwargs: keyword arguments of ``forward``; one of the two is empty.
        inputs: of the module, with their dynamic dimensions.
        names: "input_names" and "output_names" of the graph.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[TensorInput]
    names: dict[str, list[str]]


def _export_by_dynamo(call: _Call) -> ir.Model:
    """Export with the exporter built on torch.export, with the node names of the tracing one."""
    shapes = _dynamic(call.inputs)
    with quiet(swallow=True):
        program = torch.onnx.export(
            call.module,
            call.args,
            kwargs=call.kwargs,
            dynamo=True,
            optimize=False,
            verbose=False,
            dynamic_shapes=shapes if call.kwargs else tuple(shapes.values()),
            **call.names,  # type: ignore[arg-type]
        )
    return _name_nodes(program.model)  # type: ignore[union-attr]


def export_program(program: "torch.export.ExportedProgram") -> ir.Model:
    """Export a program of ``torch.export``, whose dynamic dimensions are part of it.

    Args:
        program: as read by ``torch.export.load``.

    Returns:
        The graph.

    Raises:
        UnsupportedError: the exporter fails, or the program was exported in training mode.
    """
    if any(_is_training_op(node) for node in program.graph.nodes):
        raise UnsupportedError(
            "the program was exported in training mode, where BatchNorm and Dropout depend on the "
            "batch; call .eval() before torch.export.export"
        )
    try:
        with quiet(swallow=True):
            exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:
        raise UnsupportedError(
            f"torch cannot export the program to ONNX ({first_line(error)}); "
            "export the module yourself and give the .onnx file"
        ) from error
    return _name_nodes(exported.model)  # type: ignore[union-attr]


def _is_training_op(node: torch.fx.Node) -> bool:
    """Return whether an operation of a program is a BatchNorm or Dropout in training mode."""
    # Operator -> position of its argument ``training``.
    position = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}.get(str(node.target))
    if position is None:
        return str(node.target).startswith("aten._native_batch_norm_legit.")
    return len(node.args) > position and node.args[position] is True


def _dynamic(inputs: Sequence[TensorInput]) -> dict[str, dict[int, Any]]:
    """Return input -> axis -> dynamic dimension; equal names are one dimension."""
    dims: dict[str, Any] = {}
    return {
        spec.name: {
            axis: dims.setdefault(dim, torch.export.Dim(dim))
            for axis, dim in enumerate(spec.shape)
            if isinstance(dim, str)
        }
        for spec in inputs
    }


@contextlib.contextmanager
def _positional(call: _Call) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments by position, and make ``forward`` accept them while the block runs.

    With keyword arguments the tracing exporter would pass the defaults of all other parameters as
    tensors, also where ``forward`` expects a Python flag.
    """
    if not call.kwargs:
        yield call.args
        return
    module: Any = call.module
    own, forward = module.__dict__.get("forward"), module.forward
    module.forward = lambda *args: forward(**dict(zip(call.kwargs, args, strict=True)))
    try:
        yield tuple(call.kwargs.values())
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _export_by_tracing(call: _Call) -> ir.Model:
    """Export with the tracing exporter, which names nodes after the paths of the modules.

    The fused attention that torch uses in eval mode is switched off: this exporter has no ONNX form
    of it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            quiet(swallow=True),
            _positional(call) as args,
        ):
            path = Path(folder) / "traced.onnx"
            torch.onnx.export(
                call.module,
                args,
                str(path),
                dynamo=False,
                training=torch.onnx.TrainingMode.EVAL,
                do_constant_folding=False,
                opset_version=TRACED_OPSET,
                dynamic_axes={
                    spec.name: {a: d for a, d in enumerate(spec.shape) if isinstance(d, str)}
                    for spec in call.inputs
                },
                **call.names,  # type: ignore[arg-type]
            )
            model = ir.external_data.load_to_model(ir.load(path))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    for node in model.graph.all_nodes():
        parts = (node.name or "").split("/")
        for k in range(2, len(parts)):  # children of containers have only a number here
            parts[k] = f"{parts[k - 1]}.{parts[k]}" if parts[k].isdigit() else parts[k]
        node.name = "/".join(parts)
    return model


def first_line(error: BaseException | None) -> str:
    """Return the first informative line of an error, skipping the exporters' headlines."""
    for line in str(error).splitlines():
        text = line.strip().removesuffix(".")
        if text and not text.startswith(("Failed to", "- [", "## ", "\x1b", "This is step", "(")):
            return text if len(text) <= 200 else text[:197] + "..."
    cause = getattr(error, "__cause__", None)
    return first_line(cause) if cause is not None else type(error).__name__


def _name_nodes(model: ir.Model) -> ir.Model:
    """Name nodes ``/layer1/layer1.0/conv1/Conv``, as tracing does, and remove the metadata.

    The metadata contains stack traces with paths of the user's machine, which would be copied into
    every file made from this graph.
    """
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        name = "/".join(["", *_labels(ast.literal_eval(scopes) if scopes else []), node.op_type])
        count = counts[name] = counts.get(name, -1) + 1
        node.name = f"{name}_{count}" if count else name
        node.metadata_props.clear()
    for value in (v for node in model.graph.all_nodes() for v in node.outputs):
        value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    return model


def _labels(scopes: Sequence[str]) -> list[str]:
    """Return the path components of nested scopes such as ``["", "layer1", "layer1.0", "conv2d"]``.

    The last scope is the operation itself. A numbered child gets the name of its container in
    front, so that the last components of ``layer1.0`` and ``layer2.0`` differ.
    """
    labels: list[str] = []
    parent = ""
    for scope in scopes[:-1]:
        if not scope or not scope.startswith(f"{parent}." if parent else ""):
            continue
        own = scope.removeprefix(f"{parent}.") if parent else scope
        numbered = own.isdigit() and labels
        labels.append(f"{labels[-1]}.{own}" if numbered else own)
        parent = scope
    return [label for label in labels if not label.startswith("_empty_nn_module_stack")]
