"""Write ONNX files: one file, or above 1.5 GB a second file for the weights."""

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qtool import files
from qtool.errors import RecipeError

# Tensors of up to this many bytes stay in the ONNX file, where shape inference sees them.
SMALL = 256
# Bytes of a memory page: external tensors start on one, so that mapped arrays are aligned.
PAGE = 4096


def save_model(model: ir.Model, path: Path) -> None:
    """Write the file atomically; above 1.5 GB weights go to ``<name>.data`` in the same folder.

    The model then maps its large weights from that file, so that memory holds them only once.

    Args:
        model: above the limit its large initializers are replaced by external tensors.
        path: the file to write.

    Raises:
        RecipeError: the model still reads the file that its weights would be written to.
    """
    values = list(model.graph.initializers.values())
    if sum(v.const_value.nbytes for v in values if v.const_value) <= files.EXTERNAL_BYTES:
        with files.atomic_path(path) as temporary:
            _save(model, temporary)
        return
    data = path.absolute().with_name(f"{path.name}.data")
    _check_not_read(values, data)
    # The weights are renamed into place first: once the ONNX file exists, so do its weights.
    with files.atomic_path(path) as temporary, files.atomic_path(data) as weights:
        _write_external(values, weights, data)
        _save(model, temporary)


def _save(model: ir.Model, path: Path) -> None:
    """Write the file without redundant types and shapes, up to a tenth of a small file."""
    computed = [v for node in model.graph for v in node.outputs]
    values = [v for v in (*model.graph.initializers.values(), *computed) if is_said_elsewhere(v)]
    removed = [(v, v.type, v.shape) for v in values]
    for value in values:
        value.type = value.shape = None
    try:
        ir.save(model, path)
    finally:
        for value, kind, shape in removed:
            value.type, value.shape = kind, shape


def is_said_elsewhere(value: ir.Value) -> bool:
    """Return True when type and shape follow from a tensor, or from a zero point and an input."""
    if value.is_graph_input() or value.is_graph_output():
        return False
    producer = value.producer()
    return producer is None or producer.op_type in ("QuantizeLinear", "DequantizeLinear")


def _write_external(values: list[ir.Value], weights: Path, data: Path) -> None:
    """Write large initializers one by one, and replace each by an external tensor in ``data``.

    Every one starts on a new page: readers that map the file get aligned numbers.

    Args:
        values: initializers; those of at most SMALL bytes stay.
        weights: temporary file to write to.
        data: final path of that file, which the external tensors refer to.
    """
    with weights.open("wb") as stream:
        for value in values:
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= SMALL:
                continue
            start = -(-stream.tell() // PAGE) * PAGE
            stream.seek(start)
            write: Any = getattr(tensor, "tofile", None)
            if write is not None:  # without a copy in memory
                write(stream)
            else:
                stream.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                data.name,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=data.parent,
            )


def _check_not_read(values: list[ir.Value], data: Path) -> None:
    for value in values:
        tensor = value.const_value
        source = isinstance(tensor, ir.ExternalTensor) and os.path.realpath(tensor.path)
        if source == os.path.realpath(data):
            raise RecipeError(
                f"{data}: the float model reads its weights from this file; choose another name"
            )
