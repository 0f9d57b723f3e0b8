"""Split the bytes of a file into weights, scales, code books and graph.

Each part is counted from the graph that was written, none as the remainder, so that their sum can
be compared with the size of the file on disk.
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
from qtool.verification.huffman import huffman_bytes

# Names that the emitters give to scales and zero points, and to code books.
SCALES = re.compile(r"_(scale|scale_column|zero_point|zero)(_\d+)?$")
CODE_BOOKS = re.compile(r"^codes_[0-9a-f]+(_\d+)?$")


@dataclass(frozen=True)
class FileParts:
    """Number of bytes of each part of a file.

    Attributes:
        payload: packed codes of weights and biases, and constants that stay float.
        scales: scales and zero points.
        code_books: look-up tables from codes to levels.
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
        """Sum of all parts."""
        return sum(astuple(self))


def weight_bytes(layers: Iterable[tuple[int, float]]) -> int:
    """Return the bytes of the weights alone.

    Args:
        layers: (number of weights, bits of each) of every layer.
    """
    return sum(ceil(count * bits / 8) for count, bits in layers)


def file_parts(emitted: ir.Model) -> tuple[FileParts, dict[str, FileParts]]:
    """Count the parts of the whole file, and those of each node's constants.

    A constant that several nodes read counts for the first of them.

    Args:
        emitted: the graph that was written to the file.

    Returns:
        The parts of the file, and node name -> parts of the constants that the node reads,
        including the nodes that unpack them.
    """
    graph = emitted.graph
    # Outputs of nodes that depend on constants only: these nodes unpack weights.
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
        constants = FileParts()
        pending = [v for v in node.inputs if v is not None]
        while pending:
            value = pending.pop()
            producer = value.producer()
            if value in counted or not (is_constant(value) or fixed.get(value, False)):
                continue
            counted.add(value)
            constants += _initializer(value) if producer is None else _node(producer)
            pending += [] if producer is None else [v for v in producer.inputs if v is not None]
        layers[node.name or ""] = layers.get(node.name or "", FileParts()) + constants
    return sum(layers.values(), rest), layers


def _head(model: ir.Model) -> int:
    """Return the bytes of versions, names and metadata."""
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
    """Return the bytes of an initializer: its data by kind, its name and shape as graph."""
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
    """Return the bytes of a number in a protobuf file (7 bits a byte)."""
    return max(1, -(-int(number).bit_length() // 7))


def _field(size: int) -> int:
    """Return the bytes of a protobuf field of ``size`` bytes, with its tag and length."""
    return 1 + _varint(size) + size


def _node(node: ir.Node) -> FileParts:
    """Return the bytes of a node and of the descriptions of its outputs."""
    size = _field(ir.serde.serialize_node(node).ByteSize())
    return FileParts(graph=size + sum(_described(v) for v in node.outputs))


def _described(value: ir.Value) -> int:
    """Return the bytes of a value's name, type and shape; 0 where the file does not store them."""
    if (value.type is None and value.shape is None) or is_type_redundant(value):
        return 0
    return _field(ir.serde.serialize_value(value).ByteSize())


def written_files(path: Path) -> list[Path]:
    """Return the path of an emitted model, and of its external data where there is any."""
    external = Path(f"{path}.data")
    return [path, external] if external.is_file() else [path]


def file_bytes(path: Path) -> int:
    """Return the bytes of an emitted model with its external data."""
    return sum(file.stat().st_size for file in written_files(path))


def size_part(
    before: int, quantized_path: Path, model: ir.Model, plan: QuantPlan, parts: FileParts
) -> Size:
    """Describe the sizes of both files for the report, with the mean bits of a weight.

    Args:
        before: bytes of the float file.
        quantized_path: the file that was written.
        model: the rewritten float graph.
        plan: frozen.
        parts: of the file that was written.

    Returns:
        The mean and the payload of weights are None where no layer has weights.
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
        weight_huffman_bytes=huffman_bytes(plan, layers) or None,
        payload_bytes=parts.payload,
        scale_bytes=parts.scales,
        code_book_bytes=parts.code_books,
        graph_bytes=parts.graph,
    )


def weight_widths(model: ir.Model, plan: QuantPlan) -> Mapping[str, tuple[int, float]]:
    """Return the number of weights and their bits, of weighted and weight-only layers.

    Args:
        model: the rewritten float graph.
        plan: frozen.

    Returns:
        Initializer name -> (number of weights, bits of each); float weights have 32 bits.
    """
    values = by_name(model.graph)
    weighted = {
        node.inputs[1].name or ""
        for node in model.graph
        if node.op_type in WEIGHTED_OPS and node.inputs[1] is not None
    }
    widths: dict[str, tuple[int, float]] = {}
    for name in sorted(weighted | plan.weight_only):
        tensor = values[name].const_value
        if tensor is not None and is_constant(values[name]):
            params = plan.params(name) if name in plan.codes else None
            count = int(np.prod(tensor.shape.numpy()))
            widths[name] = (count, 32 if params is None else params.spec.bits)
    return widths
