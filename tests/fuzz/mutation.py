"""Structure-aware mutation of ONNX files: one change of bytes, or one of the graph."""

import random
from collections.abc import Callable, Sequence

import onnx
from google.protobuf.message import Error
from onnx import TensorProto

Rng = random.Random

# Sizes, counts and positions at the edges of what a format can say.
NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 255, 65536, 10**7, 2**31 - 1, 2**31, 2**62)
# Numbers for fields of 32 bits.
SMALL_NUMBERS = tuple(n for n in NUMBERS if -(2**31) <= n < 2**31)
NAMES = ("", " ", "a/b", "x\x1b[31my", "<script>alert(1)</script>", "näme", "../../x", "a\nb", "|")
OPS = (
    "Add", "Mul", "Relu", "Conv", "Gemm", "MatMul", "Reshape", "Transpose", "Concat", "Softmax",
    "Split", "Gather", "Slice", "Pad", "Resize", "Cast", "Shape", "If", "Loop", "LSTM", "Identity",
    "GlobalAveragePool", "MaxPool", "AveragePool", "BatchNormalization", "ReduceMean", "Expand",
    "ConstantOfShape", "Tile", "Range", "NonZero", "Einsum", "Dropout", "QuantizeLinear",
    "DequantizeLinear", "ConvTranspose", "Flatten", "Squeeze", "LayerNormalization", "NoSuchOp",
)  # fmt: skip


def mutate(data: bytes, rng: Rng) -> tuple[bytes, str]:
    """Return a changed file and what was changed.

    Args:
        data: a serialized model.
        rng: draws the change; the same state gives the same change.
    """
    if rng.random() < 0.25:
        return _change_bytes(data, rng)
    while True:
        proto = onnx.load_from_string(data)
        change = rng.choice(CHANGES)
        try:
            done = change(_some_graph(proto, rng), proto, rng)
            changed = proto.SerializeToString()
        except (IndexError, ValueError, TypeError, Error):
            continue  # nothing of this kind in the graph, or a value that the field cannot hold
        if changed != data:
            return changed, f"{change.__name__.strip('_')}: {done}"


def _change_bytes(data: bytes, rng: Rng) -> tuple[bytes, str]:
    content, place = bytearray(data), rng.randrange(len(data))
    kind = rng.choice(("bit", "byte", "bytes", "cut", "insert", "repeat"))
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[place] = rng.randrange(256)
    elif kind == "bytes":
        for _ in range(rng.randrange(2, 9)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "insert":
        content[place:place] = rng.randbytes(rng.randrange(1, 9))
    else:
        content[place:place] = content[place : place + rng.randrange(1, 64)]
    return bytes(content), f"{kind} at {place}"


def _some_graph(proto: onnx.ModelProto, rng: Rng) -> onnx.GraphProto:
    """Return the main graph, or sometimes a body in it."""
    bodies = [a.g for n in proto.graph.node for a in n.attribute if a.HasField("g")]
    return rng.choice(bodies) if bodies and rng.random() < 0.4 else proto.graph


def _dims(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    tensor = rng.choice(graph.initializer)
    dims = list(tensor.dims)
    kind = rng.choice(("set", "step", "drop", "add", "swap"))
    if kind == "set":
        dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)
    elif kind == "step":
        dims[rng.randrange(len(dims))] += rng.choice((-1, 1))
    elif kind == "drop":
        del dims[rng.randrange(len(dims))]
    elif kind == "add":
        dims.insert(rng.randrange(len(dims) + 1), rng.choice(NUMBERS))
    else:
        rng.shuffle(dims)
    del tensor.dims[:]
    tensor.dims.extend(dims)
    return f"{tensor.name} {kind} {dims}"


def _tensor_type(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    tensor = rng.choice(graph.initializer)
    tensor.data_type = rng.choice([*TensorProto.DataType.values(), 99, -1])
    return f"{tensor.name} {tensor.data_type}"


def _tensor_data(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    tensor = rng.choice(graph.initializer)
    kind = rng.choice(("cut", "empty", "ones", "random", "field"))
    size = len(tensor.raw_data)
    if kind == "cut":
        tensor.raw_data = tensor.raw_data[: rng.randrange(size)]
    elif kind == "empty":
        tensor.ClearField("raw_data")
    elif kind == "ones":  # NaN in floats, -1 in integers
        tensor.raw_data = b"\xff" * size
    elif kind == "random":
        tensor.raw_data = rng.randbytes(size)
    else:
        tensor.ClearField("raw_data")
        tensor.int32_data.extend([rng.choice(SMALL_NUMBERS)] * rng.randrange(1, 9))
    return f"{tensor.name} {kind}"


def _external(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    tensor = rng.choice(graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    place = rng.choice(("/etc/passwd", "../d.npz", "d.npz", "gone", ".", "", "\0", "m.onnx"))
    tensor.external_data.add(key="location", value=place)
    if rng.random() < 0.5:
        key = rng.choice(("offset", "length"))
        tensor.external_data.add(key=key, value=str(rng.choice((*NUMBERS, "x", ""))))
    return f"{tensor.name} at {place!r}"


def _attribute(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    node = rng.choice([n for n in graph.node if n.attribute])
    k = rng.randrange(len(node.attribute))
    attribute = node.attribute[k]
    kind = rng.choice(("value", "value", "value", "length", "type", "remove", "rename"))
    if kind == "remove":
        del node.attribute[k]
    elif kind == "rename":
        attribute.name = rng.choice((*NAMES, "axis", "group", "alpha"))
    elif kind == "type":
        attribute.type = rng.choice(list(onnx.AttributeProto.AttributeType.values()))
    elif kind == "length":
        numbers = list(attribute.ints)
        attribute.ClearField("ints")
        attribute.ints.extend(numbers[:-1] if rng.random() < 0.5 else [*numbers, 1])
    elif attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif attribute.HasField("f"):
        attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    elif attribute.HasField("s"):
        attribute.s = rng.choice((b"", b"\xff", b"SAME_UPPER", b"linear", b"x" * 1000))
    else:
        attribute.i = rng.choice(NUMBERS)
    return f"{kind} {attribute.name if kind != 'remove' else ''} of {node.name}"


def _new_attribute(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    node = rng.choice(graph.node)
    name = rng.choice(("axis", "group", "kernel_shape", "pads", "strides", "dilations", "perm"))
    number = rng.choice(NUMBERS)
    many = name not in ("axis", "group")
    node.attribute.append(onnx.helper.make_attribute(name, [number] * 2 if many else number))
    return f"{name} {number} of {node.name}"


def _edge(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    values = [o for n in graph.node for o in n.output]
    values += [t.name for t in graph.initializer] + [i.name for i in graph.input] + ["", "ghost"]
    node = rng.choice(graph.node)
    kind = rng.choice(("input", "input", "remove", "add", "output", "more outputs"))
    if kind == "input":
        node.input[rng.randrange(len(node.input))] = rng.choice(values)
    elif kind == "remove":
        del node.input[rng.randrange(len(node.input))]
    elif kind == "add":
        node.input.append(rng.choice(values))
    elif kind == "output":
        node.output[rng.randrange(len(node.output))] = rng.choice(values)
    else:
        node.output.append(rng.choice(values))
    return f"{kind} of {node.name}"


def _op_type(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    node = rng.choice(graph.node)
    before, node.op_type = node.op_type, rng.choice(OPS)
    if rng.random() < 0.1:
        node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "mine", "\x00"))
    return f"{before} to {node.op_type}"


def _opset(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    if rng.random() < 0.3:
        proto.ir_version = rng.choice((*NUMBERS, 3, 4, 8, 13))
        return f"ir_version {proto.ir_version}"
    proto.opset_import[0].version = rng.choice((*NUMBERS, 5, 9, 11, 12, 13, 18, 20, 22, 25, 99))
    if rng.random() < 0.2:
        proto.opset_import[0].domain = rng.choice(("com.microsoft", "mine"))
    return f"{proto.opset_import[0].domain} {proto.opset_import[0].version}"


def _declared(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    """Change the shape or type of an input, an output or a value that is described."""
    info = rng.choice([*graph.input, *graph.input, *graph.output, *graph.value_info])
    tensor = info.type.tensor_type
    kind = rng.choice(("size", "size", "size", "add", "drop", "type", "none", "name"))
    if kind == "size":
        tensor.shape.dim[rng.randrange(len(tensor.shape.dim))].dim_value = rng.choice(NUMBERS)
    elif kind == "add":
        tensor.shape.dim.add().dim_value = rng.choice(NUMBERS)
    elif kind == "drop":
        del tensor.shape.dim[rng.randrange(len(tensor.shape.dim))]
    elif kind == "type":
        tensor.elem_type = rng.choice([*TensorProto.DataType.values(), 99])
    elif kind == "none":
        info.ClearField("type")
    else:
        info.name = rng.choice(NAMES)
    return f"{kind} of {info.name!r}"


def _remove(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    fields = (graph.node, graph.node, graph.node, graph.initializer, graph.input, graph.output)
    field: Sequence[object] = rng.choice(fields)
    k = rng.randrange(len(field))
    del field[k]  # type: ignore[attr-defined]
    return f"element {k}"


def _repeat(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    field = rng.choice((graph.node, graph.initializer, graph.input, graph.output))
    field.add().CopyFrom(rng.choice(field))  # type: ignore[attr-defined]
    return f"{type(field[-1]).__name__}"


def _order(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    nodes = list(graph.node)
    rng.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    return "nodes"


def _name(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    """Rename a node, or a value everywhere."""
    new = rng.choice(NAMES)
    if rng.random() < 0.3:
        rng.choice(graph.node).name = new
        return f"a node to {new!r}"
    old = rng.choice([o for n in graph.node for o in (*n.input, *n.output) if o])
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [new if value == old else value for value in field]
    for part in (*graph.input, *graph.output, *graph.initializer):
        part.name = new if part.name == old else part.name
    return f"{old} to {new!r}"


def _nested(graph: onnx.GraphProto, proto: onnx.ModelProto, rng: Rng) -> str:
    """Wrap the graph in bodies, one in the other."""
    depth = rng.choice((1, 2, 20, 30))
    for _ in range(depth):
        body = onnx.GraphProto()
        body.CopyFrom(graph)
        node = onnx.NodeProto(op_type="If", input=graph.node[0].input[:1], name="if")
        node.output.extend(o.name for o in graph.output)
        for name in ("then_branch", "else_branch")[: 2 if depth < 3 else 1]:
            node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(body)
        del graph.node[:]
        graph.node.append(node)
    return f"{depth} bodies"


Change = Callable[[onnx.GraphProto, onnx.ModelProto, Rng], str]
CHANGES: tuple[Change, ...] = (
    _dims, _dims, _tensor_type, _tensor_data, _external, _attribute, _attribute, _new_attribute,
    _edge, _edge, _op_type, _opset, _declared, _declared, _remove, _repeat, _order, _name, _nested,
)  # fmt: skip
