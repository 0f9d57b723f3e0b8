"""A torch module as an ONNX graph: eval mode, BatchNorm kept, names from the module's own paths.

The exporter built on torch.export comes first; where it fails, the older one that traces. Both are
asked to fold nothing, so that PTQ and QAT start from one graph, and both give the same names.
"""

import ast
import contextlib
import io
import logging
import os
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

SCOPES = "pkg.torch.onnx.name_scopes"
TRACED_OPSET = 20
TRACING = "tracing"
EXPORTERS = ("torch.export", TRACING)
"""In the order they are tried."""


@contextlib.contextmanager
def quiet(swallow: bool = False) -> Iterator[None]:
    """Keep stdout for the result: what the block prints goes to stderr, or nowhere.

    Args:
        swallow: drop it, with warnings, log lines and what C++ prints; for the exporters' own
            chatter.
    """
    with contextlib.ExitStack() as stack:
        target = io.StringIO() if swallow else sys.stderr
        stack.enter_context(contextlib.redirect_stdout(target))
        if swallow:
            stack.enter_context(contextlib.redirect_stderr(target))
            stack.enter_context(_deaf())
            before = logging.root.manager.disable
            logging.disable(logging.CRITICAL)
            stack.callback(logging.disable, before)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Drop what is written to the process's own stdout: torch prints graphs there from C++."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for as long as the block runs; every part gets its own mode back."""
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
    """Export through the first exporter that can.

    Args:
        module: in eval mode.
        inputs: their shapes say which dimensions stay dynamic.
        feeds: example tensors by input name.
        outputs: names for what the module returns.
        by_keyword: whether the inputs are parameters of ``forward`` by their names.
        exporters: of EXPORTERS, in the order they are tried; a scripted module is only traced.

    Returns:
        The graph, and a note where the older exporter was needed.

    Raises:
        UnsupportedError: none of them can.
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
            model = _traced(call) if name == TRACING else _exported(call)
        except (
            Exception
        ) as error:  # the exporters raise kinds of their own, and what the model does
            failed[name] = error
            continue
        return model, [
            f"exported by tracing, because the exporter built on torch.export failed: "
            f"{first_line(error)}; what the network decides in Python is fixed to one case"
            for error in failed.values()
        ]
    told = "; ".join(f"{name}: {first_line(error)}" for name, error in failed.items())
    raise UnsupportedError(
        f"torch cannot export the network to ONNX ({told}); "
        "change the module, or export it yourself and give the .onnx file"
    ) from next(reversed(failed.values()), None)


@dataclass(frozen=True)
class _Call:
    """How a module is called while it is exported: args and kwargs as ``forward`` takes them."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Sequence[TensorInput]
    names: dict[str, list[str]]


def _exported(call: _Call) -> ir.Model:
    """The graph of the exporter that is built on torch.export, nodes named as tracing does."""
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
    return _named(program.model)  # type: ignore[union-attr]


def export_program(program: "torch.export.ExportedProgram") -> ir.Model:
    """Export what ``torch.export.save`` wrote; its dynamic dimensions are those it was made with.

    Raises:
        UnsupportedError: the exporter cannot, or the program was exported in training mode.
    """
    if any(_trains(node) for node in program.graph.nodes):
        raise UnsupportedError(
            "the program was exported in training mode, where BatchNorm and Dropout depend on the "
            "batch; call .eval() before torch.export.export"
        )
    try:
        with quiet(swallow=True):
            made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:
        raise UnsupportedError(
            f"torch cannot export the program to ONNX ({first_line(error)}); "
            "export the module yourself and give the .onnx file"
        ) from error
    return _named(made.model)  # type: ignore[union-attr]


def _trains(node: torch.fx.Node) -> bool:
    """Whether an operation of a program behaves as in training."""
    place = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}.get(str(node.target))
    if place is None:
        return str(node.target).startswith("aten._native_batch_norm_legit.")
    return len(node.args) > place and node.args[place] is True


def _dynamic(inputs: Sequence[TensorInput]) -> dict[str, dict[int, Any]]:
    """For each input the dimensions with a name; equal names are one dimension."""
    known: dict[str, Any] = {}
    found: dict[str, dict[int, Any]] = {}
    for given in inputs:
        found[given.name] = {
            axis: known.setdefault(dim, torch.export.Dim(dim))
            for axis, dim in enumerate(given.shape)
            if isinstance(dim, str)
        }
    return found


@contextlib.contextmanager
def _positional(call: _Call) -> Iterator[tuple[Any, ...]]:
    """The arguments by position, for as long as ``forward`` takes them so.

    The older exporter would add the defaults of all other parameters, as tensors: a flag then is a
    tensor where torch wants a flag.
    """
    if not call.kwargs:
        yield call.args
        return
    module: Any = call.module
    own, forward = module.__dict__.get("forward"), module.forward
    module.forward = lambda *given: forward(**dict(zip(call.kwargs, given, strict=True)))
    try:
        yield tuple(call.kwargs.values())
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _traced(call: _Call) -> ir.Model:
    """The older exporter's graph; its nodes are already named after the module's paths.

    Attention's fused forms, which torch takes in eval mode, have no symbols there.
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
                    given.name: {a: d for a, d in enumerate(given.shape) if isinstance(d, str)}
                    for given in call.inputs
                },
                **call.names,  # type: ignore[arg-type]
            )
            model = ir.external_data.load_to_model(ir.load(path))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    for node in model.graph.all_nodes():
        parts = (node.name or "").split("/")
        for k in range(2, len(parts)):  # TorchScript numbers children without their container
            parts[k] = f"{parts[k - 1]}.{parts[k]}" if parts[k].isdigit() else parts[k]
        node.name = "/".join(parts)
    return model


def first_line(error: BaseException | None) -> str:
    """The first line that says something, without colour and without the exporters' headlines."""
    for line in str(error).splitlines():
        text = line.strip().removesuffix(".")
        if text and not text.startswith(("Failed to", "- [", "## ", "\x1b", "This is step", "(")):
            return text if len(text) <= 200 else text[:197] + "..."
    cause = getattr(error, "__cause__", None)
    return first_line(cause) if cause is not None else type(error).__name__


def _named(model: ir.Model) -> ir.Model:
    """Name nodes ``/layer1/layer1.0/conv1/Conv``, as tracing does, and drop the metadata.

    Stack traces in the metadata would carry the user's paths into every file made from this one.
    """
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        name = "/".join(["", *_labels(ast.literal_eval(scopes) if scopes else []), node.op_type])
        seen = taken[name] = taken.get(name, -1) + 1
        node.name = f"{name}_{seen}" if seen else name
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
    """Path components of the nested modules ``["", "layer1", "layer1.0", "conv2d"]``.

    The last scope is the operation itself. A numbered child is called after its container, so that
    ``layer1.0`` and ``layer2.0`` can be told apart by their last component.
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
