"""Checks of an ONNX file's tensors and attributes, before a graph is built from them.

``onnx.checker`` is no such check: it refuses files that every runtime runs, such as those with an
output without a shape, and it copies each tensor.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx import AttributeProto, TensorProto

from qtool.errors import ModelError
from qtool.user_code import is_function_name, torch_network_needs

WEIGHTS = (".pth", ".safetensors", ".ckpt")
"""Suffixes of files with the weights of a torch network, without the network."""


def check_path(path: Path) -> None:
    """Check that a path names a file that can be an ONNX model.

    Args:
        path: as the user wrote it.

    Raises:
        ModelError: no such file, a function that makes a torch network, or weights alone.
    """
    if path.suffix in WEIGHTS and path.is_file():
        raise ModelError(
            f"model {path}: found weights of a torch network without its code, expected an .onnx, "
            f".pt2 or .pt file; {torch_network_needs('module:function', str(path))}"
        )
    if path.is_file():
        return
    if is_function_name(str(path)):
        raise ModelError(
            f"model {path}: found a function that makes a torch network, expected a file; "
            + torch_network_needs(str(path), "FILE.safetensors")
        )
    raise ModelError(f"model {path}: no such file; expected an .onnx file")


def check_file(proto: onnx.ModelProto, path: Path) -> None:
    """Check that texts are UTF-8, tensors hold what their dims say and attributes have a type.

    Args:
        proto: as it was read; external data is not looked at.
        path: of the file, for messages.

    Raises:
        ModelError: names the initializer, or the node and the attribute; or there is no such opset.
    """
    for text in _texts(proto):
        if isinstance(text, bytes):  # protobuf reads what it does not write
            raise ModelError(
                f"model {path}: the text {text[:60]!r} is not UTF-8; the file is damaged: export "
                "it again"
            )
    for opset in proto.opset_import:
        if opset.version < 1:
            raise ModelError(
                f'model {path}: version {opset.version} of the operators "{opset.domain}"; '
                "expected 1 or more: export it again"
            )
    for function in proto.functions:
        _check_nodes(function.node, path)
    for graph in graphs(proto.graph):
        for tensor in graph.initializer:
            _check_tensor(tensor, f'initializer "{tensor.name}"', path)
        _check_nodes(graph.node, path)


def _texts(message: Any) -> Iterator[str | bytes]:
    """Yield the texts of a message and of those in it; bytes where one is not UTF-8."""
    if isinstance(message, TensorProto):  # reading its data would copy it
        yield from (message.name, message.doc_string)
        for entry in message.external_data:
            yield from (entry.key, entry.value)
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from (value,) if isinstance(value, str | bytes) else value
        elif field.type == field.TYPE_MESSAGE:
            for each in value if isinstance(value, Sequence) else (value,):
                yield from _texts(each)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all bodies in it. Protobuf limits their depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node or body.initializer:
                    yield from graphs(body)


def _check_nodes(nodes: Iterable[onnx.NodeProto], path: Path) -> None:
    for node in nodes:
        place = f'node "{node.name or node.op_type}"'
        if not any(node.output):
            raise ModelError(f"model {path}: {place} has no outputs; export it again")
        for attribute in node.attribute:
            if attribute.type == AttributeProto.UNDEFINED and not attribute.ref_attr_name:
                raise ModelError(
                    f'model {path}: the attribute "{attribute.name}" of {place} has no type; '
                    "export it again"
                )
            for tensor in (attribute.t, *attribute.tensors):
                if attribute.type == AttributeProto.TENSOR or tensor.data_type or tensor.dims:
                    _check_tensor(tensor, f'the attribute "{attribute.name}" of {place}', path)


def _check_tensor(tensor: TensorProto, place: str, path: Path) -> None:
    """Check that a tensor has a type, sizes, and as many elements as they say."""
    dims = list(tensor.dims)
    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        raise ModelError(
            f"model {path}: {place} has the unknown element type {tensor.data_type}; export it "
            "again with a newer exporter, or use a newer version of qtool"
        )
    if any(size < 0 for size in dims):
        raise ModelError(f"model {path}: {place} has the dims {dims}; export it again")
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    expected, count, unit = _lengths(tensor)
    if count != expected:
        name = TensorProto.DataType.Name(tensor.data_type)
        raise ModelError(
            f"model {path}: {place} holds {count} {unit}, but {name} {dims} takes {expected}; the "
            "file is damaged: export it again"
        )


def _lengths(tensor: TensorProto) -> tuple[int, int, str]:
    """Return the length that the dims say, the length of the data, and what is counted."""
    elements = prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return elements, len(tensor.string_data), "texts"
    if tensor.HasField("raw_data"):
        bits = elements * ir.DataType(tensor.data_type).bitwidth
        return -(-bits // 8), len(tensor.raw_data), "bytes"
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        elements *= 2
    bits = ir.DataType(tensor.data_type).bitwidth
    if bits < 8:  # packed, several elements a number
        elements = -(-elements // (8 // bits))
    return elements, len(getattr(tensor, field)), f"elements in {field}"
