"""Find the front end of sound networks: a Fourier basis, and the layer that reads the magnitudes.

The loud and the quiet parts of a magnitude spectrum are 60 dB apart and more, 8 bits resolve 48 dB,
and a layer behind it reads both. Its logarithm fits into 8 bits.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import (
    WEIGHTED_OPS,
    attribute,
    constant,
    dims,
    is_constant,
    name_of,
    producer_behind,
)

# Ops that choose or rearrange values.
MOVES = frozenset(
    {
        *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"),
        *("Split", "Gather", "Pad", "MaxPool"),
    }
)
# Ops in front of the basis: scaling, pre-emphasis and framing of the wave.
FRAMING = MOVES | {"Add", "Sub", "Mul", "Div", "Concat", "Expand"}
# Ops behind the powers that leave a spectrum one: its root, floors, scales.
SCALES = MOVES | {"Sqrt", "Add", "Mul", "Div", "Clip", "Max", "Relu", "ReduceMean", "AveragePool"}
TRANSFORMS = ("DFT", "STFT")

BASIS_REASON = "its weights are a Fourier basis: a spectrum spans more than 8 bits resolve"
READER_REASON = "it reads a spectrum without a logarithm, which spans more than 8 bits resolve"

# Real and imaginary part.
PARTS = 2


def spectrum_reasons(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Map the layers in front of and behind the powers of a spectrum to why they stay float.

    A power is re^2 + im^2, where both parts come from one or two layers with constant weights that
    no other such layer precedes, or from ``DFT`` or ``STFT``. Layers behind it stay float up to a
    logarithm: filters without negative weights (mel), and the first layer with some.

    Args:
        nodes: of the main graph, in order.
    """
    reasons: dict[str, str] = {}
    for node in nodes:
        sources = [producer_behind(part, MOVES) for part in _squared(node)]
        if not sources or not all(_is_transform(source) for source in sources):
            continue
        basis = [name_of(s) for s in sources if s is not None and s.op_type in WEIGHTED_OPS]
        reasons |= dict.fromkeys(basis, BASIS_REASON)
        reasons |= {name_of(reader): READER_REASON for reader in _layers_behind(node)}
    return reasons


def _squared(node: ir.Node) -> list[ir.Value]:
    """Return the values whose squares a node adds up over two parts; none where it does not."""
    if node.op_type == "Add":
        bases = [_base_of_square(value) for value in node.inputs]
        return [base for base in bases if base is not None] if None not in bases else []
    source = node.inputs[0] if node.inputs else None
    if node.op_type not in ("ReduceSum", "ReduceSumSquare", "ReduceL2"):
        return []
    base = _base_of_square(source) if node.op_type == "ReduceSum" else source
    return [base] if base is not None and _reduces_parts(node) else []


def _base_of_square(value: ir.Value | None) -> ir.Value | None:
    """Return x where a value is x^2, as a power or a product."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    square = exponent is not None and exponent.size == 1 and float(exponent.flat[0]) == PARTS
    return node.inputs[0] if square else None


def _reduces_parts(node: ir.Node) -> bool:
    """Return whether a reduction has one axis, of the size 2."""
    shape = dims(node.inputs[0])
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    if shape is None or axes is None or np.size(axes) != 1:
        return False
    return shape[int(np.ravel(axes)[0])] == PARTS


def _is_transform(node: ir.Node | None) -> bool:
    """Return whether a node is a Fourier transform, or a layer that reads the wave itself."""
    if node is None or node.op_type in TRANSFORMS:
        return node is not None
    if node.op_type not in WEIGHTED_OPS or not is_constant(node.inputs[1]):
        return False
    seen: set[ir.Node] = set()
    todo = [node.inputs[0]]
    while todo:
        value = todo.pop()
        before = value.producer() if value is not None else None
        if before is None or before in seen:
            continue
        if before.op_type not in FRAMING:
            return False
        seen.add(before)
        todo += [v for v in before.inputs if not is_constant(v)]
    return True


def _layers_behind(power: ir.Node) -> Iterator[ir.Node]:
    """Yield the layers that read a spectrum, up to the first with negative weights."""
    seen: set[ir.Node] = set()
    todo = [power]
    while todo:
        for out in todo.pop().outputs:
            for reader, position in out.uses():
                if reader in seen:
                    continue
                seen.add(reader)
                weights = _weights(reader, position)
                if weights is not None:
                    yield reader
                if weights.min() >= 0 if weights is not None else _is_scale(reader):
                    todo.append(reader)


def _is_scale(node: ir.Node) -> bool:
    """Return whether a spectrum stays one; a power below a root compresses it as a logarithm."""
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return node.op_type in SCALES or (exponent is not None and exponent.min() >= 1 / 2)


def _weights(node: ir.Node, position: int) -> np.ndarray | None:
    """Return the constant weights of a layer that reads a value as its input, else None."""
    if node.op_type not in WEIGHTED_OPS or position != 0:
        return None
    array = constant(node.inputs[1])
    return array if array is not None and array.size else None
