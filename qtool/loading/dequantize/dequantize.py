"""Conversion of quantized ONNX models to float models, which can then be quantized again.

The float model computes what the quantized one computed, up to rounding. One pass in graph order
records, for every value that holds codes, the float value that they represent, their scale and
their zero point:

- QuantizeLinear records them, DequantizeLinear returns the float value, and integer operators are
  replaced by the float operator on the float values. Constant codes become float constants; the
  scale of an int32 bias is that of the product that it is added to.
- Saturation is part of the function of a quantized model. A Relu or Clip with the range of the
  integer type is added where the value may leave that range. It always stays where it does the work
  of a Relu: converters drop a Relu where the zero point is the smallest code. A range that only
  cuts off outliers (values beyond those seen in calibration) stays after convolutions, Gemm and
  Add and at outputs, where a Clip costs nothing. Elsewhere (inputs, data movement, pooling, in
  front of a BatchNormalization) it is removed, since there it would be a float operator between
  integer kernels or keep the BatchNormalization from being folded.
- Data movement operators are applied to the float values. The scales of dynamic quantization are
  computed at run time and must cancel; Cast, Sub and Mul of codes are followed until they do.
- All other readers of codes get codes computed from the float value (divide, round, clip). Codes
  that enter from outside, such as a uint8 input, are dequantized by float operators, so that the
  types of inputs and outputs stay the same.
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
from qtool.loading.dequantize.affine import (
    QuantizedValue,
    code_range,
    constant_array,
    parse_scale,
    same_zero_point,
)
from qtool.loading.dequantize.cleanup import clean_up, remove_unused
from qtool.loading.dequantize.float_graph import DATA_MOVEMENT_OPS, FloatGraphBuilder
from qtool.loading.dequantize.node_io import optional_input
from qtool.loading.dequantize.operators import find_handler
from qtool.loading.dequantize.saturation import limit_range
from qtool.loading.onnx_loader import (
    QUANTIZED_OPS,
    Loaded,
    infer_shapes,
    load_model,
    normalize,
    read_graph,
)

# Operators with the same result for codes and float values: scales are positive, so order stays.
AFFINE_INVARIANT_OPS = {"Shape", "Size", "ArgMax", "ArgMin"}
CODE_TYPES = {ir.DataType[f"{sign}INT{bits}"] for sign in ("", "U") for bits in (2, 4, 8, 16)}
# Operators that copy, reorder or select codes.
CODE_PRESERVING_OPS = DATA_MOVEMENT_OPS | {"MaxPool", "Split", "Concat", "Pad", "Resize"}


def load_requantized(
    path: Path, cache_path: Callable[[tuple[str, ...]], Path], opset: int = 21
) -> Loaded:
    """Read an ONNX file as a float model; a quantized model is converted.

    Args:
        path: a ``.onnx`` file.
        cache_path: maps the parts of a cache key to the file that the float model is written to.
        opset: the opset of the default domain to raise the model to.

    Returns:
        The float model; a note lists the operators that were converted.

    Raises:
        ModelError: missing, empty or damaged file (exit 2).
        UnsupportedError: an operator has no float form (exit 3).
    """
    model, parts = read_graph(path)
    model, notes = normalize(model, opset, path)
    conversion_notes = to_float(model, path)
    if not conversion_notes:
        return replace(
            load_model(path, opset),
            notes=(*notes, "--requantize: nothing is quantized; the model is used as it is"),
        )
    infer_shapes(model)
    check_fully_dequantized(model, path)
    digest = files.digest_of(parts)
    written = cache_path((digest, "requantize", str(opset)))
    save_model(model, written)
    loaded = load_model(written, opset)
    return replace(loaded, sha256=digest, name=str(path), notes=(*notes, *conversion_notes))


def check_fully_dequantized(model: ir.Model, path: Path) -> None:
    """Check that no quantization operator is left.

    Args:
        model: after the conversion.
        path: for messages.

    Raises:
        UnsupportedError: one is left; names it.
    """
    left = next((n for n in model.graph.all_nodes() if n.op_type in QUANTIZED_OPS), None)
    if left is not None:
        raise UnsupportedError(
            f'model {path}: --requantize has no float form of "{left.name}" ({left.op_type}); '
            "give the float model the file was made from"
        )


def to_float(model: ir.Model, path: Path) -> list[str]:
    """Replace every quantization operator by float operators, in place.

    Args:
        model: normalized: opset raised, constants as initializers, all nodes named. Its inputs
            and outputs keep their names and types.
        path: for messages.

    Returns:
        One note that lists the replaced operators; none for a float model.

    Raises:
        UnsupportedError: an operator has no float form (names it).
    """
    counts = Counter(n.op_type for n in model.graph.all_nodes() if find_handler(n) is not None)
    if not counts:
        return []
    builder = FloatGraphBuilder(model, path)
    model.graph.sort()
    _convert(builder, model.graph)
    remove_unused(model)
    clean_up(builder)
    remove_unused(model)
    kinds = ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))
    return [
        f"--requantize: {kinds} turned back to float; what is called float from here on is this "
        "reconstruction, with its accuracy and its latency, not those of the unknown original"
    ]


def _convert(builder: FloatGraphBuilder, graph: ir.Graph) -> None:
    """Convert the nodes of a graph in order, bodies before the nodes that hold them."""
    for node in list(graph):
        for body in nested(node):
            _convert(builder, body)
        handler = find_handler(node)
        if handler is not None:
            handler(builder, node)
        elif any(v in builder.quantized_values for v in node.inputs if v is not None):
            _convert_reader(builder, node)
        else:
            _fold_unpacking(builder, node)
    for index, value in enumerate(graph.outputs):
        if value in builder.quantized_values:
            _quantize_output(builder, graph, index, value)


def _fold_unpacking(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Replace a node by a constant if it unpacks or widens constant codes.

    Weights packed below 8 bits are unpacked by standard operators in front of DequantizeLinear.
    """
    arrays = [constant(v) for v in node.inputs if v is not None]
    if not arrays or any(array is None for array in arrays) or node.domain not in ("", "ai.onnx"):
        return
    if not any(v in builder.widened or v.dtype in CODE_TYPES for v in node.inputs if v is not None):
        return
    if len(node.outputs) > 1 or any(nested(node)):
        return
    proto = onnx.NodeProto()
    ir.serde.serialize_node_into(proto, node)
    input_names = [str(v.name) for v in node.inputs if v is not None]
    feeds = dict(zip(input_names, arrays, strict=True))
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(str(node.outputs[0].name))],
    )
    opset = onnx.helper.make_opsetid("", builder.model.opset_imports[""])
    single = onnx.helper.make_model(graph, opset_imports=[opset])
    outputs = cast(list[np.ndarray], onnx.reference.ReferenceEvaluator(single).run(None, feeds))
    value = builder.const(str(node.outputs[0].name), outputs[0], None)
    builder.widened.add(value)
    builder.replace_value(node.outputs[0], value)


def _convert_reader(builder: FloatGraphBuilder, node: ir.Node) -> None:
    """Convert a node that reads codes but is no quantization operator.

    The node is applied to the float value where that is equivalent; otherwise its codes are
    computed from the float value.
    """
    if node.domain in ("", "ai.onnx"):
        first = builder.quantized_values.get(node.inputs[0]) if node.inputs[0] is not None else None
        if node.op_type in AFFINE_INVARIANT_OPS and first is not None and first.is_per_tensor:
            node.replace_input_with(0, first.real)
            return
        if node.op_type == "Clip" and _convert_clip(builder, node):
            return
        if node.op_type in CODE_PRESERVING_OPS and _convert_data_movement(builder, node):
            return
        if node.op_type in ("Cast", "Mul", "Div", "Sub", "Add") and _convert_arithmetic(
            builder, node
        ):
            return
    for index, value in enumerate(node.inputs):
        if value is not None and value in builder.quantized_values:
            node.replace_input_with(index, builder.compute_codes(node, value))


def _convert_clip(builder: FloatGraphBuilder, node: ir.Node) -> bool:
    """Convert a Clip of codes to limits of the float value; return False where it is not static."""
    quantized = builder.quantized_values.get(node.inputs[0]) if node.inputs[0] is not None else None
    first, last = clip_limits(node)
    if quantized is None or first is None or last is None or not _is_static(quantized):
        return False
    lo, hi = (_real_value(np.asarray(code, np.float64), quantized) for code in (first, last))
    step = np.asarray(quantized.scale.constant)
    real = limit_range(builder, node, quantized.real, lo, hi, step)
    builder.quantized_values[node.outputs[0]] = QuantizedValue(
        real, quantized.scale, quantized.zero_point, quantized.dtype
    )
    return True


def _convert_data_movement(builder: FloatGraphBuilder, node: ir.Node) -> bool:
    """Apply an operator that copies or selects codes to the float values.

    Returns:
        False where that is not equivalent: scales per channel, inputs with different scales, or
        constants next to a scale that is computed at run time.
    """
    all_inputs = node.op_type == "Concat"
    sources = [v for v in (node.inputs if all_inputs else node.inputs[:1]) if v is not None]
    grids = [builder.quantized_values.get(v) for v in sources]
    common = next((quantized for quantized in grids if quantized is not None), None)
    if common is None or not common.is_per_tensor:
        return False
    others = (v for v in node.inputs if v is not None and v not in sources)
    if any(v in builder.quantized_values for v in others):
        return False
    reals: list[ir.Value] = []
    for value, quantized in zip(sources, grids, strict=True):
        codes = constant_array(value)
        if (
            quantized is not None
            and quantized.scale.equals(common.scale)
            and same_zero_point(quantized.zero_point, common.zero_point)
        ):
            reals.append(quantized.real)
        elif codes is not None and _is_static(common):
            reals.append(builder.const(f"{value.name}_float", _real_value(codes, common)))
        else:
            return False
    inputs = [*reals, *node.inputs[len(sources) :]]
    if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
        filled = optional_input(node, 2)
        codes = np.zeros(()) if filled is None else constant_array(filled)
        if codes is None or not _is_static(common):
            return False
        inputs[2:3] = [builder.const("pad", _real_value(codes, common))]
    outputs = builder.add_several(node, node.op_type, inputs, node.attributes, node.outputs)
    # All outputs of a Split hold codes; the second output of MaxPool holds indices.
    quantized_outputs = len(outputs) if node.op_type == "Split" else 1
    for k, (old, new) in enumerate(zip(node.outputs, outputs, strict=True)):
        if k < quantized_outputs:
            builder.quantized_values[old] = QuantizedValue(
                new, common.scale, common.zero_point, common.dtype
            )
        else:
            new.type = old.type
            builder.replace_value(old, new)
    return True


def _is_static(quantized: QuantizedValue) -> bool:
    """Return whether scale and zero point are constant."""
    return not quantized.scale.dynamic and not isinstance(quantized.zero_point, ir.Value)


def _real_value(codes: np.ndarray, quantized: QuantizedValue) -> np.ndarray:
    """Compute (codes - zero point) * scale."""
    return (codes - np.asarray(quantized.zero_point)) * quantized.scale.constant


def _convert_arithmetic(builder: FloatGraphBuilder, node: ir.Node) -> bool:
    """Record the result of Cast, Add, Sub, Mul or Div of codes as a scaling of the float value.

    Together they are a dequantization: codes are cast to float, the zero point is subtracted and
    the difference multiplied by the scale.

    Returns:
        False where the result is no such scaling.
    """
    inputs = [v for v in node.inputs if v is not None]
    quantized = builder.quantized_values.get(inputs[0])
    out = node.outputs[0]
    if node.op_type == "Cast":
        to = ir.DataType(int(attribute(node, "to")))
        if quantized is None or not _can_represent(to, quantized.dtype):
            return False
        out.type = ir.TensorType(to)
        builder.record(out, quantized.real, quantized.scale, quantized.zero_point)
        return True
    other = inputs[1]
    if quantized is None and node.op_type in ("Mul", "Add"):
        quantized, other = builder.quantized_values.get(inputs[1]), inputs[0]
    if (
        quantized is None
        or other in builder.quantized_values
        or isinstance(quantized.zero_point, ir.Value)
    ):
        return False
    if not quantized.dtype.is_floating_point():
        return False
    factor = parse_scale(other)
    real_rank = rank(quantized.real)
    # A factor of a higher rank would broadcast the result to that rank.
    if real_rank is not None and np.ndim(factor.constant) > real_rank:
        return False
    if node.op_type in ("Add", "Sub"):
        if factor.dynamic:
            return False
        zero = quantized.zero_point + factor.constant * (1 if node.op_type == "Add" else -1)
        if np.any(zero):  # not the zero point, but an offset of another kind
            return False
        builder.record(out, quantized.real, quantized.scale, np.zeros(()))
        return True
    # A static scale contains nothing that a factor computed at run time could cancel.
    if np.any(quantized.zero_point) or not (quantized.scale.dynamic or not factor.dynamic):
        return False
    scale = quantized.scale / factor if node.op_type == "Mul" else quantized.scale * factor
    if scale.dynamic:
        builder.quantized_values[out] = QuantizedValue(
            quantized.real, scale, np.zeros(()), quantized.dtype
        )
    else:
        builder.set_float_output(node, quantized.real, scale)
    return True


def _can_represent(to: ir.DataType, codes: ir.DataType) -> bool:
    """Return whether a type represents every value of another type."""
    if to.is_floating_point():
        return to.bitwidth >= 16
    if not to.is_integer() or not codes.is_integer():
        return False
    (low, high), (first, last) = code_range(to), code_range(codes)
    return low <= first and last <= high


def _quantize_output(
    builder: FloatGraphBuilder, graph: ir.Graph, index: int, value: ir.Value
) -> None:
    """Compute the codes of a graph output from its float value, with the same name and type."""
    last = next(reversed(graph), None)
    if last is None:
        raise AssertionError("a graph with codes has nodes")
    # A node at the end of the graph, in front of which the codes are computed; then removed.
    anchor = ir.Node("", "Identity", [value], name=builder.unique(f"{value.name}/encode"))
    graph.insert_after(last, anchor)
    codes = builder.compute_codes(anchor, value)
    graph.remove(anchor, safe=True)
    name, value.name = value.name, builder.unique(f"{value.name}_float")
    codes.name = name
    graph.outputs[index] = codes
