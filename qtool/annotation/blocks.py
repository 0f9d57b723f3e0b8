"""Name the blocks of several operators that a graph holds, for the report."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, attribute, dims, is_constant, name_of

# Nodes of one block, the last one first.
Block = tuple[ir.Node, ...]

# Operators between the mean and the gate of squeeze-excite.
GATE_OPS = {*WEIGHTED_OPS} | {
    *("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Add", "Mul", "Div"),
    *("Reshape", "Squeeze", "Unsqueeze", "Flatten"),
}
MAX_GATE = 12

# Activations between a depthwise and a pointwise convolution; a product is that of a SiLU.
ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Mul"})


def block_notes(nodes: Sequence[ir.Node], integer: frozenset[str]) -> list[str]:
    """Return one line that names each kind of block, how many there are, and where they compute.

    Args:
        nodes: of the main graph, in order.
        integer: names of the nodes that compute on codes.
    """
    parts = []
    for name, find in BLOCKS.items():
        blocks = [block for node in nodes for block in find(node)]
        members = {name_of(node) for block in blocks for node in block}
        if blocks:
            share = f"{len(members & integer)} of {len(members)} ops on codes"
            parts.append(f"{len(blocks)} {name} ({share})")
    return [f"blocks: {', '.join(parts)}"] if parts else []


def _silu(node: ir.Node) -> Iterator[Block]:
    """Yield x * sigmoid(x) that ends in a node."""
    if node.op_type != "Mul":
        return
    for x, gate in (node.inputs, node.inputs[::-1]):
        sigmoid = _producer(gate)
        if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.inputs[0] is x:
            yield node, sigmoid
            return


def _squeeze_excite(node: ir.Node) -> Iterator[Block]:
    """Yield x * gate(mean(x)) that ends in a node."""
    if node.op_type != "Mul":
        return
    for x, gate in (node.inputs, node.inputs[::-1]):
        path: list[ir.Node] = []
        behind = _producer(gate)
        while behind is not None and behind.op_type in GATE_OPS and len(path) < MAX_GATE:
            path.append(behind)
            behind = _producer(_computed(behind))
        mean = behind is not None and behind.op_type in ("GlobalAveragePool", "ReduceMean")
        weighted = any(step.op_type in WEIGHTED_OPS for step in path)
        if behind is not None and mean and weighted and behind.inputs[0] is x:
            yield node, *path, behind
            return


def _group_norm(node: ir.Node) -> Iterator[Block]:
    """Yield an InstanceNormalization of groups: channels are reshaped in front and behind."""
    if node.op_type != "InstanceNormalization":
        return
    before = _producer(node.inputs[0])
    behind = [reader for reader, _ in node.outputs[0].uses()]
    reshaped = len(behind) == 1 and behind[0].op_type == "Reshape"
    if before is not None and before.op_type == "Reshape" and reshaped:
        yield behind[0], node, before


def _rms_norm(node: ir.Node) -> Iterator[Block]:
    """Yield x / sqrt(mean(x^2) + epsilon), or the product with the root's Reciprocal."""
    if node.op_type not in ("Div", "Mul"):
        return
    for x, scale in (node.inputs, node.inputs[::-1]):
        steps: list[ir.Node] = []
        behind = _producer(scale)
        while behind is not None and behind.op_type in ("Reciprocal", "Div", "Pow", "Sqrt", "Add"):
            steps.append(behind)
            behind = _producer(_computed(behind))
        square = _producer(_computed(behind)) if behind is not None else None
        if behind is None or behind.op_type != "ReduceMean" or square is None:
            continue
        if square.op_type in ("Pow", "Mul") and square.inputs[0] is x and len(steps) > 1:
            yield node, *steps, behind, square
            return


def _separable(node: ir.Node) -> Iterator[Block]:
    """Yield a convolution of one tap that reads a depthwise one, and what lies between them."""
    if node.op_type != "Conv" or set((dims(node.inputs[1]) or ())[2:]) != {1} or _group(node) != 1:
        return
    path: list[ir.Node] = []
    behind = _producer(node.inputs[0])
    while behind is not None and behind.op_type in ACTIVATIONS:
        path.append(behind)
        behind = _producer(behind.inputs[0])
    shape = dims(behind.inputs[1]) if behind is not None and behind.op_type == "Conv" else None
    if behind is not None and shape is not None and shape[1] == 1 < _group(behind):
        yield node, *path, behind


def _group(conv: ir.Node) -> int:
    return int(attribute(conv, "group", 1))


BLOCKS: Mapping[str, Callable[[ir.Node], Iterator[Block]]] = {
    "SiLU": _silu,
    "squeeze-excite": _squeeze_excite,
    "GroupNorm": _group_norm,
    "RMSNorm": _rms_norm,
    "depthwise-separable convolution": _separable,
}


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _computed(node: ir.Node) -> ir.Value | None:
    """Return the first operand that is no constant."""
    return next((v for v in node.inputs if v is not None and not is_constant(v)), None)
