"""Loading of torch models: a factory with weights, a ``.pt2`` program, a TorchScript ``.pt`` file.

Each is exported to a float ONNX file, which is cached under a digest of its sources and loaded like
any other ONNX file. All three kinds can run arbitrary code; callers must ask for permission first.
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
from qtool.loading.onnx_loader import Loaded, load_model, normalize
from qtool.loading.pytorch.checkpoint import load_weights
from qtool.loading.pytorch.example_inputs import (
    TensorInput,
    named_outputs,
    random_tensor,
    random_tensors,
)
from qtool.loading.pytorch.export import (
    EXPORTERS,
    eval_mode,
    export_module,
    export_program,
    first_line,
    quiet,
)
from qtool.loading.pytorch.export_check import (
    Run,
    compare_with_torch,
    least_exact_type,
    run_network,
)
from qtool.loading.pytorch.factory import build, import_factory
from qtool.user_code import isolated_imports

__all__ = ["TensorInput", "TorchSource", "export_to", "inputs_like", "load_torch"]

# Key of the file's metadata that holds the notes of the export, so that a cached file has them too.
NOTES = "qtool.notes"


@dataclass(frozen=True)
class TorchSource:
    """The source of a torch model.

    Attributes:
        torch: ``module:factory``, or the path of a ``.pt2`` or TorchScript ``.pt`` file.
        weights: a file of weights for the factory's network, or None to use its own.
        inputs: of the network; a ``.pt2`` file contains them.
        folder: searched for the module before ``sys.path``.
    """

    torch: str
    weights: Path | None = None
    inputs: tuple[TensorInput, ...] = ()
    folder: Path | None = None

    @property
    def is_file(self) -> bool:
        """True if ``torch`` is a file and not a factory."""
        return self.torch.endswith((".pt", ".pt2"))


@dataclass(frozen=True)
class _Network:
    """A torch network and how to call it.

    Attributes:
        run: calls the network with tensors by input name.
        graph: exports the network; returns the graph and notes.
        feeds: tensors by input name for the comparison, different from those of the export.
    """

    run: Run
    graph: Callable[[], tuple[ir.Model, list[str]]]
    feeds: dict[str, torch.Tensor]


def load_torch(
    source: TorchSource,
    cache_path: Callable[[tuple[str, ...]], Path],
    opset: int = 21,
    *,
    fresh: bool = False,
) -> Loaded:
    """Export a torch model, or reuse the file of an earlier export, and load it. Runs its code.

    Args:
        source: the model.
        cache_path: maps the parts of a cache key to the file of the export.
        opset: as for :func:`load_model`.
        fresh: export again even if the file exists.

    Returns:
        The loaded export.

    Raises:
        ModelError: the model's files or code are wrong (exit 2).
        UnsupportedError: torch cannot export it, or the export differs from torch (exit 3).
    """
    with quiet(), isolated_imports(source.folder):
        if source.is_file:
            file = Path(source.torch)
            digest = _digest([file])
            load_network = _load_program if file.suffix == ".pt2" else _load_script
            path = _export_path(source, digest, cache_path)
            if fresh or not path.is_file():
                _export(*load_network(source), path, opset)
        else:
            factory, sources = import_factory(source.torch, source.folder)
            weights = [] if source.weights is None else [source.weights]
            digest = _digest([*weights, *sources])
            module = None
            if source.weights is None:
                # The factory may draw its parameters at random, so they are part of the cache key.
                module = build(source.torch, factory)
                digest = _digest_with_parameters(digest, module)
            path = _export_path(source, digest, cache_path)
            if fresh or not path.is_file():
                module = module or build(source.torch, factory)
                _export(*_prepare_module(source, module), path, opset)
    return replace(_read(path, opset), sha256=digest, name=source.torch)


def export_to(
    module: nn.Module,
    inputs: Sequence[TensorInput],
    path: Path,
    opset: int = 21,
    exporters: Sequence[str] = EXPORTERS,
) -> Loaded:
    """Export a module to a float ONNX file, compare the two and load the file.

    Args:
        module: exported in eval mode; its own mode is restored.
        inputs: in the order of ``forward``.
        path: the file to write.
        opset: as for :func:`load_model`.
        exporters: see :func:`export_module`.

    Returns:
        The loaded export.

    Raises:
        ModelError: the module fails on inputs of these shapes.
        UnsupportedError: torch cannot export it, or the export differs from torch.
    """
    network, notes = _module_network(module, tuple(inputs), type(module).__name__, exporters)
    with quiet(), eval_mode(module):
        _export(network, notes, path, opset)
    return replace(_read(path, opset), name=type(module).__name__)


def inputs_like(module: nn.Module, examples: Any) -> tuple[TensorInput, ...]:
    """Describe the inputs of a module from one example of each; the batch dimension is dynamic.

    Args:
        module: the parameters of its ``forward`` name inputs without a name.
        examples: a tensor, a tuple or list of tensors, or a mapping of names to tensors.

    Returns:
        The inputs in the order of the examples.

    Raises:
        ModelError: the examples are something else.
    """
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, list | tuple):
        names = list(inspect.signature(module.forward).parameters)
        names += [f"input_{k}" for k in range(len(names), len(examples))]
        examples = dict(zip(names, examples, strict=False))
    valid = isinstance(examples, Mapping) and all(
        isinstance(v, torch.Tensor) and v.ndim for v in examples.values()
    )
    if not valid or not examples:
        raise ModelError(
            f"inputs: found {type(examples).__name__}, expected example tensors with a batch "
            "axis: one, a tuple, or {name: tensor}"
        )
    return tuple(
        TensorInput(name, ("N", *tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in examples.items()
    )


def _read(path: Path, opset: int) -> Loaded:
    """Load the file of an export and add the notes in its metadata."""
    loaded = load_model(path, opset)
    notes = tuple(json.loads(loaded.model.metadata_props.pop(NOTES, "[]")))
    return replace(loaded, notes=(*notes, *loaded.notes))


def _digest(files: Sequence[Path]) -> str:
    """Return the sha256 of one file, or of the digests of several."""
    digests = []
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: no such file; expected a torch model or its weights")
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest_with_parameters(digest: str, module: nn.Module) -> str:
    """Return the sha256 of a digest and a module's state dict."""
    total = hashlib.sha256(digest.encode())
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            total.update(name.encode())
            total.update(
                value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    return total.hexdigest()


def _export_path(
    source: TorchSource, digest: str, cache_path: Callable[[tuple[str, ...]], Path]
) -> Path:
    """Return the file of an export, which depends on sources, inputs and the version of torch."""
    return cache_path((digest, source.torch, repr(source.inputs), torch.__version__))


def _prepare_module(source: TorchSource, module: nn.Module) -> tuple[_Network, list[str]]:
    """Load the weights of a source into the module of its factory."""
    notes = ["weights: none given; those the factory made are used"]
    if source.weights is not None:
        notes = load_weights(module, source.weights)
    module.to("cpu").eval()
    network, more = _module_network(module, source.inputs, source.torch)
    return network, [*notes, *more]


def _module_network(
    module: nn.Module,
    inputs: tuple[TensorInput, ...],
    name: str,
    exporters: Sequence[str] = EXPORTERS,
) -> tuple[_Network, list[str]]:
    """Describe how to call and export a module.

    Args:
        module: in eval mode when it is exported.
        inputs: declared inputs, at least one.
        name: of the model, for messages.
        exporters: see :func:`export_module`.

    Raises:
        ModelError: there are no declared inputs.
    """
    if not inputs:
        raise ModelError(
            f"model {name}: its inputs are not known; add their shapes to the recipe: "
            f'model: {{torch: "{name}", input: {{input: [N, 3, 32, 32]}}}}'
        )
    order = _parameters(module)
    by_keyword = {spec.name for spec in inputs} <= set(order)
    if by_keyword:  # the exporters write inputs in the order of ``forward``
        inputs = tuple(sorted(inputs, key=lambda spec: order.index(spec.name)))
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    examples = {k: v.to(device) for k, v in random_tensors(inputs, 0).items()}
    others = {k: v.to(device) for k, v in random_tensors(inputs, 100, other=True).items()}

    def run(feeds: Mapping[str, torch.Tensor]) -> Any:
        return module(**feeds) if by_keyword else module(*feeds.values())

    def graph() -> tuple[ir.Model, list[str]]:
        outputs = list(named_outputs(run_network(run, examples, name)))
        return export_module(module, inputs, examples, outputs, by_keyword, exporters)

    return _Network(run, graph, others), []


def _parameters(module: nn.Module) -> list[str]:
    """Return the names of the parameters that ``forward`` accepts by keyword, in order."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if isinstance(module, torch.jit.ScriptModule):
        return []
    return [
        p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds
    ]


def _load_script(source: TorchSource) -> tuple[_Network, list[str]]:
    """Load a TorchScript file."""
    file = Path(source.torch)
    try:
        module = torch.jit.load(str(file), map_location="cpu").eval()
    except Exception as error:
        raise ModelError(
            f"model {file}: not a TorchScript file ({first_line(error)}); for saved weights write "
            f'model: {{torch: "module:factory", weights: {file.name}, input: ...}}'
        ) from error
    network, notes = _module_network(module, source.inputs, file.name)
    return network, [*notes, "TorchScript: exported by tracing"]


def _load_program(source: TorchSource) -> tuple[_Network, list[str]]:
    """Load a file of ``torch.export.save``, with the inputs that it was exported with."""
    file = Path(source.torch)
    try:
        program = torch.export.load(file)
        module = program.module()
    except Exception as error:
        raise ModelError(
            f"model {file}: not a file of torch.export.save that this torch reads "
            f"({first_line(error)}); save it again with torch {torch.__version__}"
        ) from error
    examples = program.example_inputs
    if examples is None:
        raise ModelError(f"model {file}: it holds no example inputs; save it again with them")
    leaves, spec = torch.utils._pytree.tree_flatten(examples)
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


def _export(network: _Network, notes: list[str], path: Path, opset: int) -> None:
    """Export a network, compare the graph with torch and write it with notes in its metadata."""
    model, more = network.graph()
    computed_in = least_exact_type(model)  # before 16-bit floats become float32
    model, raised = normalize(model, opset, path)
    comparison = compare_with_torch(network.run, network.feeds, model, path.name, computed_in)
    notes = [*notes, *more, *raised, comparison]
    model.metadata_props[NOTES] = json.dumps(notes)
    save_model(model, path)
