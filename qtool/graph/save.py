"""ONNX files out: one file, or above 1.5 GB the weights in a file of their own beside it."""

import os
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qtool import files
from qtool.errors import RecipeError

# Tensors of up to this many bytes stay in the ONNX file, where shape inference sees them.
SMALL = 256
PAGE = 4096


def save_model(model: ir.Model, path: Path) -> None:
    """Write the file, whole or not at all; above 1.5 GB weights go to ``<name>.data`` beside it.

    Weights that went there are mapped from there afterwards, so that they are held only once.

    Args:
        model: above the limit its large initializers are exchanged for those in the file.
        path: the file to write.

    Raises:
        RecipeError: the weights' file is one that the model itself still reads.
    """
    values = list(model.graph.initializers.values())
    if sum(v.const_value.nbytes for v in values if v.const_value) <= files.EXTERNAL_BYTES:
        with files.atomic_path(path) as temporary:
            _save(model, temporary)
        return
    data = path.absolute().with_name(f"{path.name}.data")
    _refuse_own(values, data)
    # The weights take their place first: a reader who finds the file finds them too.
    with files.atomic_path(path) as temporary, files.atomic_path(data) as weights:
        _move_out(values, weights, data)
        _save(model, temporary)


def _save(model: ir.Model, path: Path) -> None:
    """Write the file, types and shapes only where they are news: up to a tenth of a small one."""
    made = [v for node in model.graph for v in node.outputs]
    values = [v for v in (*model.graph.initializers.values(), *made) if is_said_elsewhere(v)]
    said = [(v, v.type, v.shape) for v in values]
    for value in values:
        value.type = value.shape = None
    try:
        ir.save(model, path)
    finally:
        for value, kind, shape in said:
            value.type, value.shape = kind, shape


def is_said_elsewhere(value: ir.Value) -> bool:
    """True when type and shape are those of a tensor, or of a zero point and an input."""
    if value.is_graph_input() or value.is_graph_output():
        return False
    producer = value.producer()
    return producer is None or producer.op_type in ("QuantizeLinear", "DequantizeLinear")


def _move_out(values: list[ir.Value], weights: Path, data: Path) -> None:
    """Write large initializers one by one; each is let go for the place in ``data`` it will have.

    Every one starts on a page of its own: readers that map the file get aligned numbers.
    """
    with weights.open("wb") as stream:
        for value in values:
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= SMALL:
                continue
            start = -(-stream.tell() // PAGE) * PAGE
            stream.seek(start)
            writes: Any = getattr(tensor, "tofile", None)
            if writes is not None:  # without a copy in memory
                writes(stream)
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


def _refuse_own(values: list[ir.Value], data: Path) -> None:
    for value in values:
        tensor = value.const_value
        own = isinstance(tensor, ir.ExternalTensor) and os.path.realpath(tensor.path)
        if own == os.path.realpath(data):
            raise RecipeError(
                f"{data}: the float model's own weights lie there; choose another file name"
            )
