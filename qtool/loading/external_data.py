"""External data: where it may lie, and when it stays there.

Weights of a model above ``files.MAPPED_BYTES`` stay mapped: every reader sees them as arrays, no
byte is copied, and ONNX Runtime is told the file instead of being handed the bytes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from qtool import files
from qtool.errors import ModelError

# Below this many bytes a tensor may be a shape or an axis that inference has to see.
SMALL = 4096


def resolve_external_data(model: ir.Model, path: Path) -> list[Path]:
    """Check where the model's external data lies, and read it unless it is large.

    Args:
        model: as read from ``path``; changed in place.
        path: the ``.onnx`` file, absolute.

    Returns:
        The model's file and those its weights lie in.

    Raises:
        ModelError: external data is missing, too short, or outside the model's folder (exit 2).
    """
    found = [path]
    held = [tensor for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)]
    for tensor in held:
        file = _checked(tensor, path)
        if file not in found:
            found.append(file)
    # A small model outlives its file: what is written elsewhere must not point back to it.
    large = sum(tensor.nbytes for tensor in held) > files.MAPPED_BYTES
    for graph in model.graphs():
        for value in graph.initializers.values():
            lying = value.const_value
            if isinstance(lying, ir.serde.TensorProtoTensor) and lying.nbytes > SMALL:
                # Protobuf copies its bytes for every reader; this is the one copy.
                value.const_value = ir.Tensor(lying.numpy(), name=lying.name, dtype=lying.dtype)
            if not isinstance(lying, ir.ExternalTensor):
                continue
            if not large or lying.nbytes <= SMALL or graph is not model.graph:
                array = lying.numpy().copy()
                value.const_value = ir.Tensor(array, name=lying.name, dtype=lying.dtype)
                lying.release()
    return found


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of the model: initializers of all graphs, and attributes."""
    for graph in model.graphs():
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def _checked(tensor: ir.ExternalTensor, path: Path) -> Path:
    """The file an external tensor lies in, if it may and does lie there."""

    def refuse(found: str, advice: str) -> ModelError:
        return ModelError(f'model {path}: the weights of "{tensor.name}" lie in {found}; {advice}')

    location, folder = os.fspath(tensor.location), path.parent
    file = folder / location
    inside = "expected a path inside the model's folder; export it again with the data beside it"
    if os.path.isabs(location):
        raise refuse(f"{location}, an absolute path", inside)
    if not _within(os.path.normpath(file), folder):
        raise refuse(f"{location}, which leads out of the model's folder", inside)
    if not file.is_file():
        raise refuse(f"{file}, which is missing", "put the external data file beside the model")
    if not _within(os.path.realpath(file), Path(os.path.realpath(folder))):
        raise refuse(
            f"{file}, a link out of the model's folder",
            "ONNX Runtime refuses such links: put a copy of the file there",
        )
    size, start, needed = file.stat(), tensor.offset or 0, tensor.nbytes
    if tensor.length not in (None, 0, needed):
        raise refuse(
            f"{tensor.length} bytes of {file}, expected {needed} for {tensor.dtype.name} "
            f"{list(tensor.shape.numpy())}",
            "export it again",
        )
    if start < 0 or size.st_size < start + needed:
        raise refuse(
            f"{file} from byte {start}, which ends at byte {size.st_size}, expected at least "
            f"{start + needed}",
            "copy the file again",
        )
    if size.st_nlink > 1:  # onnx_ir reads no such file, since a link may show what is not its own
        raise refuse(f"{file}, which has {size.st_nlink} hard links", "put a copy of it there")
    return file


def _within(file: str, folder: Path) -> bool:
    return Path(file).is_relative_to(os.path.normpath(folder))
