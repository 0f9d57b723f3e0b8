"""Torch models in: a factory with weights, a ``.pt2`` program, or a TorchScript ``.pt`` file.

Each becomes a float ONNX file in a folder of the caller's, made once for one digest, and is loaded
from there like any other. All of them can run code of their own: callers ask for trust first.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from qtool.errors import ModelError
from qtool.graph.save import save_model
from qtool.loading.onnx_loader import Loaded, load_model, settle
from qtool.loading.pytorch.checkpoint import load_weights
from qtool.loading.pytorch.example_inputs import TensorInput, by_name, random_tensor, random_tensors
from qtool.loading.pytorch.export import (
    EXPORTERS,
    evaluating,
    export_module,
    export_program,
    first_line,
    quiet,
)
from qtool.loading.pytorch.export_check import Run, coarsest, compared, tried
from qtool.loading.pytorch.factory import build, import_factory
from qtool.user_code import guest_modules

__all__ = ["TensorInput", "TorchSource", "export_to", "inputs_like", "load_torch"]

NOTES = "qtool.notes"


@dataclass(frozen=True)
class TorchSource:
    """Where a torch model comes from.

    Attributes:
        torch: ``module:factory``, or the path of a ``.pt2`` or TorchScript ``.pt`` file.
        weights: a file of tensors for the factory's network, or None to keep what it made.
        inputs: of the network; a ``.pt2`` file knows its own.
        folder: where the module is looked for first.
    """

    torch: str
    weights: Path | None = None
    inputs: tuple[TensorInput, ...] = ()
    folder: Path | None = None

    @property
    def is_file(self) -> bool:
        """Whether ``torch`` names a file and not a factory."""
        return self.torch.endswith((".pt", ".pt2"))


@dataclass(frozen=True)
class _Network:
    """A torch network and how to call it.

    Attributes:
        run: from tensors by input name to what the network returns.
        graph: exports it; returns the graph and notes.
        feeds: tensors to compare both on, by input name; others than it was exported with.
    """

    run: Run
    graph: Callable[[], tuple[ir.Model, list[str]]]
    feeds: dict[str, torch.Tensor]


def load_torch(
    source: TorchSource,
    place: Callable[[tuple[str, ...]], Path],
    opset: int = 21,
    *,
    fresh: bool = False,
) -> Loaded:
    """Export a torch model, or take the file of an earlier export, and load it. Runs its code.

    Args:
        source: what to load.
        place: from the digest of everything the export depends on to the file to write.
        opset: as for :func:`load_model`.
        fresh: export again even where the file is there.

    Raises:
        ModelError: the model's own files or code are wrong (exit 2).
        UnsupportedError: torch cannot export it, or the export computes something else (exit 3).
    """
    with quiet(), guest_modules(source.folder):
        if source.is_file:
            file = Path(source.torch)
            digest = _digest([file])
            prepare = _program if file.suffix == ".pt2" else _script
            path = _key(source, digest, place)
            if fresh or not path.is_file():
                _write(*prepare(source), path, opset)
        else:
            factory, sources = import_factory(source.torch, source.folder)
            weights = [] if source.weights is None else [source.weights]
            digest = _digest([*weights, *sources])
            module = None
            if source.weights is None:
                # The factory may draw its parameters at random: they are part of what is made.
                module = build(source.torch, factory)
                digest = _digest_of(digest, module)
            path = _key(source, digest, place)
            if fresh or not path.is_file():
                module = module or build(source.torch, factory)
                _write(*_factory(source, module), path, opset)
    return replace(_read(path, opset), sha256=digest, name=source.torch)


def export_to(
    module: nn.Module,
    inputs: Sequence[TensorInput],
    path: Path,
    opset: int = 21,
    exporters: Sequence[str] = EXPORTERS,
) -> Loaded:
    """Write a module that is in memory as a float ONNX file, checked against it, and load it.

    Args:
        module: exported in eval mode; it gets its own mode back.
        inputs: in the order of ``forward``.
        path: the file to write.
        opset: as for :func:`load_model`.
        exporters: see :func:`export_module`.

    Raises:
        ModelError: it fails on inputs of these shapes.
        UnsupportedError: torch cannot export it, or the export computes something else.
    """
    network, notes = _of_module(module, tuple(inputs), type(module).__name__, exporters)
    with quiet(), evaluating(module):
        _write(network, notes, path, opset)
    return replace(_read(path, opset), name=type(module).__name__)


def inputs_like(module: nn.Module, examples: Any) -> tuple[TensorInput, ...]:
    """The inputs of a module, from one example of each; their first dimension stays dynamic.

    Args:
        module: its ``forward`` names inputs that are given by position.
        examples: a tensor, several in a tuple or list, or a mapping of names to tensors.

    Raises:
        ModelError: the examples are something else.
    """
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, list | tuple):
        names = list(inspect.signature(module.forward).parameters)
        names += [f"input_{k}" for k in range(len(names), len(examples))]
        examples = dict(zip(names, examples, strict=False))
    good = isinstance(examples, Mapping) and all(
        isinstance(v, torch.Tensor) and v.ndim for v in examples.values()
    )
    if not good or not examples:
        raise ModelError(
            f"inputs: found {type(examples).__name__}, expected example tensors with a batch "
            "axis: one, a tuple, or {name: tensor}"
        )
    return tuple(
        TensorInput(name, ("N", *tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in examples.items()
    )


def _read(path: Path, opset: int) -> Loaded:
    """The file of an export, with the notes it was written with."""
    loaded = load_model(path, opset)
    notes = tuple(json.loads(loaded.model.metadata_props.pop(NOTES, "[]")))
    return replace(loaded, notes=(*notes, *loaded.notes))


def _digest(files: Sequence[Path]) -> str:
    """The sha256 of one file, or of the digests of several."""
    found = []
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: no such file; expected a torch model or its weights")
        with file.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _digest_of(digest: str, module: nn.Module) -> str:
    total = hashlib.sha256(digest.encode())
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            total.update(name.encode())
            total.update(
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    return total.hexdigest()


def _key(source: TorchSource, digest: str, place: Callable[[tuple[str, ...]], Path]) -> Path:
    return place((digest, source.torch, repr(source.inputs), torch.__version__))


def _factory(source: TorchSource, module: nn.Module) -> tuple[_Network, list[str]]:
    notes = ["weights: none given; those the factory made are used"]
    if source.weights is not None:
        notes = load_weights(module, source.weights)
    module.to("cpu").eval()
    network, more = _of_module(module, source.inputs, source.torch)
    return network, [*notes, *more]


def _of_module(
    module: nn.Module,
    inputs: tuple[TensorInput, ...],
    name: str,
    exporters: Sequence[str] = EXPORTERS,
) -> tuple[_Network, list[str]]:
    """A module that has been tried on inputs of the declared shapes."""
    if not inputs:
        raise ModelError(
            f"model {name}: its inputs are not known; add their shapes to the recipe: "
            f'model: {{torch: "{name}", input: {{input: [N, 3, 32, 32]}}}}'
        )
    order = _parameters(module)
    by_keyword = {given.name for given in inputs} <= set(order)
    if by_keyword:  # the exporters write inputs in the order of forward, whatever they are given
        inputs = tuple(sorted(inputs, key=lambda given: order.index(given.name)))
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    examples = {k: v.to(device) for k, v in random_tensors(inputs, 0).items()}
    others = {k: v.to(device) for k, v in random_tensors(inputs, 100, other=True).items()}

    def run(feeds: Mapping[str, torch.Tensor]) -> Any:
        return module(**feeds) if by_keyword else module(*feeds.values())

    def graph() -> tuple[ir.Model, list[str]]:
        outputs = list(by_name(tried(run, examples, name)))
        return export_module(module, inputs, examples, outputs, by_keyword, exporters)

    return _Network(run, graph, others), []


def _parameters(module: nn.Module) -> list[str]:
    """Names that ``forward`` takes by keyword, in order."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if isinstance(module, torch.jit.ScriptModule):
        return []
    return [
        p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds
    ]


def _script(source: TorchSource) -> tuple[_Network, list[str]]:
    file = Path(source.torch)
    try:
        module = torch.jit.load(str(file), map_location="cpu").eval()
    except Exception as error:
        raise ModelError(
            f"model {file}: not a TorchScript file ({first_line(error)}); for saved weights write "
            f'model: {{torch: "module:factory", weights: {file.name}, input: ...}}'
        ) from error
    network, notes = _of_module(module, source.inputs, file.name)
    return network, [*notes, "TorchScript: exported by tracing"]


def _program(source: TorchSource) -> tuple[_Network, list[str]]:
    file = Path(source.torch)
    try:
        program = torch.export.load(file)
        module = program.module()
    except Exception as error:
        raise ModelError(
            f"model {file}: not a file of torch.export.save that this torch reads "
            f"({first_line(error)}); save it again with torch {torch.__version__}"
        ) from error
    given = program.example_inputs
    if given is None:
        raise ModelError(f"model {file}: it holds no example inputs; save it again with them")
    leaves, spec = torch.utils._pytree.tree_flatten(given)
    names = list(program.graph_signature.user_inputs)
    generator = torch.Generator().manual_seed(0)
    feeds = {
        str(name): random_tensor(leaf.shape, leaf.dtype, generator)
        for name, leaf in zip(names, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    }

    def run(feeds: Mapping[str, torch.Tensor]) -> Any:
        flat = [feeds.get(str(n), leaf) for n, leaf in zip(names, leaves, strict=True)]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, spec)
        return module(*args, **kwargs)

    return _Network(run, lambda: (export_program(program), []), feeds), []


def _write(network: _Network, notes: list[str], path: Path, opset: int) -> None:
    """Export, compare with torch, and write the file, with the notes inside."""
    model, more = network.graph()
    computed_in = coarsest(model)
    model, raised = settle(model, opset, path)
    told = compared(network.run, network.feeds, model, path.name, computed_in)
    notes = [*notes, *more, *raised, told]
    model.metadata_props[NOTES] = json.dumps(notes)
    save_model(model, path)
