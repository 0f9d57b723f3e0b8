"""Quantized ONNX files back to floats, so that they can be quantized anew.

The float graph computes what the quantized one computed, up to rounding. One pass in graph order
keeps, for every value that holds codes, the float value they stand for and their grid:

- QuantizeLinear notes both, DequantizeLinear hands the float value on, and integer operators become
  the float operator of those values; codes that are constant become float constants, int32 biases
  with the scale of the product they are added to.
- Saturation is part of what the file computes: a grid leaves a Relu or Clip with its range where
  the value is not known to stay inside. Always where it does the work of a Relu: converters drop
  one whose work the grid does (zero point at the lower end). A range that only cuts off outliers,
  values beyond what calibration saw, is kept behind convolutions, Gemm, sums and at outputs, where
  a Clip costs nothing. Elsewhere (inputs, moved values, pooling, in front of a BatchNormalization)
  it is left out: it would stand between integer kernels as a float op, or keep BatchNormalization
  from being folded, for the sake of values that calibration never met.
- Ops that move codes move floats. A scale that is computed at run time must cancel (dynamic
  quantization); what Cast, Sub and Mul do to codes is followed until a float is left.
- Whatever else reads codes gets them computed from the float value (divide, round, clip); codes
  from outside, such as an uint8 input, are decoded in float ops: types at the border stay.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from qtool import files
from qtool.errors import UnsupportedError
from qtool.graph.queries import attribute, clip_limits, constant, nested, rank
from qtool.graph.save import save_model
from qtool.loading.dequantize.affine import Held, limits, monomial, numbers, same_zero
from qtool.loading.dequantize.cleanup import clean, tidy
from qtool.loading.dequantize.float_graph import MOVING, Floating
from qtool.loading.dequantize.operators import handler_of, operand
from qtool.loading.onnx_loader import (
    QUANTIZED_OPS,
    Loaded,
    infer_shapes,
    load_model,
    read_graph,
    settle,
)

# Reads codes as well as floats, since an affine map with a positive scale changes nothing for it.
CODE_BLIND = {"Shape", "Size", "ArgMax", "ArgMin"}
# Moves or selects codes; more than one input or output is told apart below.
CODES = {ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (2, 4, 8, 16)}
CARRYING = MOVING | {"MaxPool", "Split", "Concat", "Pad", "Resize"}


def load_requantized(
    path: Path, place: Callable[[tuple[str, ...]], Path], opset: int = 21
) -> Loaded:
    """Read an ONNX file that may be quantized, as a float model.

    Args:
        path: a ``.onnx`` file.
        place: from what the float model depends on to the file to write it to.
        opset: the default-domain opset wanted.

    Raises:
        ModelError: missing, empty or damaged file (exit 2).
        UnsupportedError: an operator has no float form (exit 3).
    """
    model, parts = read_graph(path)
    model, notes = settle(model, opset, path)
    turned = to_float(model, path)
    if not turned:
        return replace(
            load_model(path, opset),
            notes=(*notes, "--requantize: nothing is quantized; the model is used as it is"),
        )
    infer_shapes(model)
    refuse_left(model, path)
    digest = files.digest_of(parts)
    written = place((digest, "requantize", str(opset)))
    save_model(model, written)
    loaded = load_model(written, opset)
    return replace(loaded, sha256=digest, name=str(path), notes=(*notes, *turned))


def refuse_left(model: ir.Model, path: Path) -> None:
    """Stop when a quantization operator is left.

    Raises:
        UnsupportedError: names the first one.
    """
    left = next((n for n in model.graph.all_nodes() if n.op_type in QUANTIZED_OPS), None)
    if left is not None:
        raise UnsupportedError(
            f'model {path}: --requantize knows no float form of "{left.name}" ({left.op_type}); '
            "give the float model the file was made from"
        )


def to_float(model: ir.Model, path: Path) -> list[str]:
    """Replace every quantization operator by float ones, in place.

    Args:
        model: settled: opset raised, constants lifted, every node named. Its inputs and outputs
            keep their names and types.
        path: for messages.

    Returns:
        What was replaced and what that means, in a sentence; nothing for a float model.

    Raises:
        UnsupportedError: an operator has no float form (names it).
    """
    found = Counter(n.op_type for n in model.graph.all_nodes() if handler_of(n) is not None)
    if not found:
        return []
    work = Floating(model, path)
    model.graph.sort()
    _convert(work, model.graph)
    clean(model)
    tidy(work)
    clean(model)
    kinds = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
    return [
        f"--requantize: {kinds} turned back to float; what is called float from here on is this "
        "reconstruction, with its accuracy and its latency, not those of the unknown original"
    ]


def _convert(work: Floating, graph: ir.Graph) -> None:
    for node in list(graph):
        for body in nested(node):
            _convert(work, body)
        handler = handler_of(node)
        if handler is not None:
            handler(work, node)
        elif any(v in work.held for v in node.inputs if v is not None):
            _follow(work, node)
        else:
            _fold(work, node)
    for index, value in enumerate(graph.outputs):
        if value in work.held:
            _encode(work, graph, index, value)


def _fold(work: Floating, node: ir.Node) -> None:
    """A weight that the graph unpacks or widens from codes: compute it."""
    arrays = [constant(v) for v in node.inputs if v is not None]
    if not arrays or any(array is None for array in arrays) or node.domain not in ("", "ai.onnx"):
        return
    if not any(v in work.widened or v.dtype in CODES for v in node.inputs if v is not None):
        return
    if len(node.outputs) > 1 or any(nested(node)):
        return
    proto = onnx.NodeProto()
    ir.serde.serialize_node_into(proto, node)
    given = [str(v.name) for v in node.inputs if v is not None]
    feeds = dict(zip(given, arrays, strict=True))
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(str(node.outputs[0].name))],
    )
    opset = onnx.helper.make_opsetid("", work.model.opset_imports[""])
    single = onnx.helper.make_model(graph, opset_imports=[opset])
    found = cast(list[np.ndarray], onnx.reference.ReferenceEvaluator(single).run(None, feeds))[0]
    value = work.const(str(node.outputs[0].name), found, None)
    work.widened.add(value)
    work.become(node.outputs[0], value)


def _follow(work: Floating, node: ir.Node) -> None:
    """A node that is no quantization operator reads codes."""
    if node.domain in ("", "ai.onnx"):
        first = work.held.get(node.inputs[0]) if node.inputs[0] is not None else None
        if node.op_type in CODE_BLIND and first is not None and first.is_scalar:
            node.replace_input_with(0, first.real)
            return
        if node.op_type == "Clip" and _limit(work, node):
            return
        if node.op_type in CARRYING and _carry(work, node):
            return
        if node.op_type in ("Cast", "Mul", "Div", "Sub", "Add") and _compute(work, node):
            return
    for index, value in enumerate(node.inputs):
        if value is not None and value in work.held:
            node.replace_input_with(index, work.materialize(node, value))


def _limit(work: Floating, node: ir.Node) -> bool:
    """Codes limited to fewer than their type holds; False where a limit is computed."""
    held = work.held.get(node.inputs[0]) if node.inputs[0] is not None else None
    first, last = clip_limits(node)
    if held is None or first is None or last is None or not _is_known(held):
        return False
    lo, hi = (_value(np.asarray(end, np.float64), held) for end in (first, last))
    step = np.asarray(held.scale.number)
    real = work.between(node, held.real, lo, hi, step)
    work.held[node.outputs[0]] = Held(real, held.scale, held.zero, held.dtype)
    return True


def _carry(work: Floating, node: ir.Node) -> bool:
    """Let a node that moves codes move what they stand for; False where it cannot."""
    several = node.op_type == "Concat"
    sources = [v for v in (node.inputs if several else node.inputs[:1]) if v is not None]
    grids = [work.held.get(v) for v in sources]
    known = next((held for held in grids if held is not None), None)
    if known is None or not known.is_scalar:
        return False
    others = (v for v in node.inputs if v is not None and v not in sources)
    if any(v in work.held for v in others):
        return False
    reals: list[ir.Value] = []
    for value, held in zip(sources, grids, strict=True):
        codes = numbers(value)
        if held is not None and held.scale.equals(known.scale) and same_zero(held.zero, known.zero):
            reals.append(held.real)
        elif codes is not None and _is_known(known):
            reals.append(work.const(f"{value.name}_float", _value(codes, known)))
        else:
            return False
    inputs = [*reals, *node.inputs[len(sources) :]]
    if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
        filled = operand(node, 2)
        codes = np.zeros(()) if filled is None else numbers(filled)
        if codes is None or not _is_known(known):
            return False
        inputs[2:3] = [work.const("pad", _value(codes, known))]
    outputs = work.add_several(node, node.op_type, inputs, node.attributes, node.outputs)
    moved = len(outputs) if node.op_type == "Split" else 1  # MaxPool's second ones are indices
    for k, (old, new) in enumerate(zip(node.outputs, outputs, strict=True)):
        if k < moved:
            work.held[old] = Held(new, known.scale, known.zero, known.dtype)
        else:
            new.type = old.type
            work.become(old, new)
    return True


def _is_known(held: Held) -> bool:
    return not held.scale.unknown and not isinstance(held.zero, ir.Value)


def _value(codes: np.ndarray, held: Held) -> np.ndarray:
    return (codes - np.asarray(held.zero)) * held.scale.number


def _compute(work: Floating, node: ir.Node) -> bool:
    """Follow arithmetic on codes; False where what comes out is not the float value again."""
    inputs = [v for v in node.inputs if v is not None]
    held = work.held.get(inputs[0])
    out = node.outputs[0]
    if node.op_type == "Cast":
        to = ir.DataType(int(attribute(node, "to")))
        if held is None or not _holds(to, held.dtype):
            return False
        out.type = ir.TensorType(to)
        work.define(out, held.real, held.scale, held.zero)
        return True
    other = inputs[1]
    if held is None and node.op_type in ("Mul", "Add"):
        held, other = work.held.get(inputs[1]), inputs[0]
    if held is None or other in work.held or isinstance(held.zero, ir.Value):
        return False
    if not held.dtype.is_floating_point():
        return False
    factor = monomial(other)
    known = rank(held.real)  # products have the rank of their scales at least
    if known is not None and np.ndim(factor.number) > known:
        return False
    if node.op_type in ("Add", "Sub"):
        if factor.unknown:
            return False
        zero = held.zero + factor.number * (1 if node.op_type == "Add" else -1)
        if np.any(zero):
            return False
        work.define(out, held.real, held.scale, np.zeros(()))
        return True
    if np.any(held.zero) or not (held.scale.unknown or not factor.unknown):
        return False
    scale = held.scale / factor if node.op_type == "Mul" else held.scale * factor
    if scale.unknown:
        work.held[out] = Held(held.real, scale, np.zeros(()), held.dtype)
    else:
        work.settle(node, held.real, scale)
    return True


def _holds(to: ir.DataType, codes: ir.DataType) -> bool:
    """Whether a Cast keeps every code."""
    if to.is_floating_point():
        return to.bitwidth >= 16
    if not to.is_integer() or not codes.is_integer():
        return False
    (low, high), (first, last) = limits(to), limits(codes)
    return low <= first and last <= high


def _encode(work: Floating, graph: ir.Graph, index: int, value: ir.Value) -> None:
    """An output of the graph that holds codes: compute them, under its name and in its type."""
    place = next(reversed(graph), None)
    if place is None:
        raise AssertionError("a graph with codes has nodes")
    end = ir.Node("", "Identity", [value], name=work.unique(f"{value.name}/encode"))
    graph.insert_after(place, end)
    codes = work.materialize(end, value)
    graph.remove(end, safe=True)
    name, value.name = value.name, work.unique(f"{value.name}_float")
    codes.name = name
    graph.outputs[index] = codes
