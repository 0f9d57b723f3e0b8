"""Where the bytes of a file are: numbers of layers, scales, code books, and the graph around them.

The parts are counted one by one from the graph that was written, not as what is left over, so that
their sum can be held against the file on disk.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, by_name, is_constant
from qtool.graph.save import is_type_redundant
from qtool.quant.plan import QuantPlan
from qtool.report.report import Size

SCALES = re.compile(r"_(scale|scale_column|zero_point|zero)(_\d+)?$")
CODE_BOOKS = re.compile(r"^codes_[0-9a-f]+(_\d+)?$")


@dataclass(frozen=True)
class FileParts:
    """Bytes in the file.

    Attributes:
        payload: codes of weights and biases as they are packed, and numbers that stay float.
        scales: scales and zero points.
        code_books: tables that codes are looked up in.
        graph: nodes, names, types, shapes.
    """

    payload: int = 0
    scales: int = 0
    code_books: int = 0
    graph: int = 0

    def __add__(self, other: "FileParts") -> "FileParts":
        return FileParts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


def weight_bytes(layers: Iterable[tuple[int, float]]) -> int:
    """Bytes of weights alone, from (parameters, bits of each) of every layer."""
    return sum(ceil(count * bits / 8) for count, bits in layers)


def file_parts(emitted: ir.Model) -> tuple[FileParts, dict[str, FileParts]]:
    """The parts of the whole file, and of what each node reads of constants, by node name.

    What several nodes read counts for the first of them.
    """
    graph = emitted.graph
    fixed: dict[ir.Value, bool] = {}
    for node in graph:
        constant = all(v is None or is_constant(v) or fixed.get(v, False) for v in node.inputs)
        fixed.update(dict.fromkeys(node.outputs, constant and bool(node.inputs)))
    counted: set[ir.Value] = set()
    layers: dict[str, FileParts] = {}
    rest = FileParts(graph=_head(emitted) + sum(_described(v) for v in graph.inputs))
    for node in graph:
        if any(fixed[v] for v in node.outputs):
            continue
        rest += _node(node)
        found = FileParts()
        waiting = [v for v in node.inputs if v is not None]
        while waiting:
            value = waiting.pop()
            producer = value.producer()
            if value in counted or not (is_constant(value) or fixed.get(value, False)):
                continue
            counted.add(value)
            found += _initializer(value) if producer is None else _node(producer)
            waiting += [] if producer is None else [v for v in producer.inputs if v is not None]
        layers[node.name or ""] = layers.get(node.name or "", FileParts()) + found
    return sum(layers.values(), rest), layers


def _head(model: ir.Model) -> int:
    """Versions, names and metadata."""
    empty = ir.Graph([], [], nodes=[], opset_imports=model.graph.opset_imports)
    head = ir.Model(
        empty,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        metadata_props=model.metadata_props,
        functions=list(model.functions.values()),
    )
    name = model.graph.name or ""
    return ir.serde.serialize_model(head).ByteSize() + _field(len(name))


def _initializer(value: ir.Value) -> FileParts:
    tensor, name = value.const_value, value.name or ""
    if tensor is None:
        return FileParts()
    head = 2 + _field(len(name.encode())) + sum(1 + _varint(d) for d in tensor.shape.numpy())
    described = _field(head + _field(tensor.nbytes)) - tensor.nbytes
    if tensor.dtype == ir.DataType.INT64:  # shapes and bounds
        return FileParts(graph=described + tensor.nbytes)
    if SCALES.search(name):
        return FileParts(scales=tensor.nbytes, graph=described)
    if CODE_BOOKS.match(name):
        return FileParts(code_books=tensor.nbytes, graph=described)
    return FileParts(payload=tensor.nbytes, graph=described)


def _varint(number: int) -> int:
    """Bytes of a number in a protobuf file."""
    return max(1, -(-int(number).bit_length() // 7))


def _field(size: int) -> int:
    """Bytes of so many bytes with their tag and length."""
    return 1 + _varint(size) + size


def _node(node: ir.Node) -> FileParts:
    size = _field(ir.serde.serialize_node(node).ByteSize())
    return FileParts(graph=size + sum(_described(v) for v in node.outputs))


def _described(value: ir.Value) -> int:
    """Name, type and shape, where the file holds them."""
    if (value.type is None and value.shape is None) or is_type_redundant(value):
        return 0
    return _field(ir.serde.serialize_value(value).ByteSize())


def written_files(path: Path) -> list[Path]:
    """A model file that qtool wrote, and the file of its weights where there is one."""
    beside = Path(f"{path}.data")
    return [path, beside] if beside.is_file() else [path]


def file_bytes(path: Path) -> int:
    """Size of a file that qtool wrote, with its external data."""
    return sum(file.stat().st_size for file in written_files(path))


def size_part(
    before: int, quantized_path: Path, model: ir.Model, plan: QuantPlan, parts: FileParts
) -> Size:
    """Bytes of both files, parts of the new one, and mean bits over weights of weighted layers.

    Args:
        before: bytes of the float file.
        quantized_path: the file that was written.
        model: the rewritten float graph.
        plan: frozen.
        parts: of the file that was written.
    """
    layers = weight_widths(model, plan)
    after, count = file_bytes(quantized_path), sum(n for n, _ in layers.values())
    bits = sum(n * width for n, width in layers.values())
    return Size(
        float_bytes=before,
        quantized_bytes=after,
        compression=round(before / after, 4),
        weight_bits_mean=round(bits / count, 4) if count else None,
        weight_payload_bytes=weight_bytes(layers.values()) if count else None,
        payload_bytes=parts.payload,
        scale_bytes=parts.scales,
        code_book_bytes=parts.code_books,
        graph_bytes=parts.graph,
    )


def weight_widths(model: ir.Model, plan: QuantPlan) -> Mapping[str, tuple[int, float]]:
    """Initializer name -> (weights, bits of each), of weighted and stored layers."""
    values = by_name(model.graph)
    weighted = {
        node.inputs[1].name or ""
        for node in model.graph
        if node.op_type in WEIGHTED_OPS and node.inputs[1] is not None
    }
    found: dict[str, tuple[int, float]] = {}
    for name in sorted(weighted | plan.weight_only):
        tensor = values[name].const_value
        if tensor is not None and is_constant(values[name]):
            params = plan.params(name) if name in plan.codes else None
            count = int(np.prod(tensor.shape.numpy()))
            found[name] = (count, 32 if params is None else params.spec.bits)
    return found
