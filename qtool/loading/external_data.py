"""Validation and reading of weights in external data files.

Weights of a model above ``files.MAPPED_BYTES`` stay memory-mapped: readers get arrays that share
the mapping, no byte is copied, and ONNX Runtime gets the path of the file instead of the bytes.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from qtool import files
from qtool.errors import ModelError

# Tensors up to this many bytes are always read: they may be shapes or axes, whose values shape
# inference needs.
SMALL_BYTES = 4096


def resolve_external_data(model: ir.Model, path: Path) -> list[Path]:
    """Check the external data of a model, and read it into memory unless it is large.

    Args:
        model: as read from ``path``; changed in place.
        path: the ``.onnx`` file, absolute.

    Returns:
        The model's file, followed by the files of its external data.

    Raises:
        ModelError: external data is missing, too short, or outside the model's folder (exit 2).
    """
    paths = [path]
    external = [tensor for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)]
    for tensor in external:
        file = _check_location(tensor, path)
        if file not in paths:
            paths.append(file)
    # Small models are read completely, so that files written from them do not refer to this file.
    large = sum(tensor.nbytes for tensor in external) > files.MAPPED_BYTES
    for graph in model.graphs():
        for value in graph.initializers.values():
            weight = value.const_value
            if isinstance(weight, ir.serde.TensorProtoTensor) and weight.nbytes > SMALL_BYTES:
                # A protobuf tensor copies its bytes on every access; copy them once.
                value.const_value = ir.Tensor(weight.numpy(), name=weight.name, dtype=weight.dtype)
            if not isinstance(weight, ir.ExternalTensor):
                continue
            # Only large initializers of the main graph stay mapped.
            if not large or weight.nbytes <= SMALL_BYTES or graph is not model.graph:
                array = weight.numpy().copy()
                value.const_value = ir.Tensor(array, name=weight.name, dtype=weight.dtype)
                weight.release()
    return paths


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of a model: the initializers of all graphs and tensor attributes."""
    for graph in model.graphs():
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def _check_location(tensor: ir.ExternalTensor, path: Path) -> Path:
    """Check that an external tensor is inside the model's folder and complete; return its file.

    A model from elsewhere must not be able to read arbitrary files, so absolute paths, paths out of
    the folder and links out of it are refused.
    """

    def error(place: str, advice: str) -> ModelError:
        return ModelError(f'model {path}: the weights of "{tensor.name}" lie in {place}; {advice}')

    location, folder = os.fspath(tensor.location), path.parent
    file = folder / location
    inside = "expected a path inside the model's folder; export it again with the data next to it"
    if os.path.isabs(location):
        raise error(f"{location}, an absolute path", inside)
    if not _within(os.path.normpath(file), folder):
        raise error(f"{location}, which leads out of the model's folder", inside)
    if not file.is_file():
        raise error(f"{file}, which is missing", "put the external data file next to the model")
    if not _within(os.path.realpath(file), Path(os.path.realpath(folder))):
        raise error(
            f"{file}, a link out of the model's folder",
            "ONNX Runtime refuses such links: put a copy of the file there",
        )
    status, start, required = file.stat(), tensor.offset or 0, tensor.nbytes
    if tensor.length not in (None, 0, required):
        raise error(
            f"{tensor.length} bytes of {file}, expected {required} for {tensor.dtype.name} "
            f"{list(tensor.shape.numpy())}",
            "export it again",
        )
    if start < 0 or status.st_size < start + required:
        raise error(
            f"{file} from byte {start}, which ends at byte {status.st_size}, expected at least "
            f"{start + required}",
            "copy the file again",
        )
    if status.st_nlink > 1:  # onnx_ir refuses them: a hard link may expose a file from elsewhere
        raise error(f"{file}, which has {status.st_nlink} hard links", "put a copy of it there")
    return file


def _within(file: str, folder: Path) -> bool:
    """Return whether a normalized path is below a folder."""
    return Path(file).is_relative_to(os.path.normpath(folder))
