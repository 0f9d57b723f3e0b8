"""Rewrites of linear layers to Gemm with alpha = beta = 1 and a one-dimensional bias.

Integer kernels exist for this form only.
"""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant, add_node, drop, replace_value, set_attributes
from qtool.graph.queries import attribute, constant, dims, is_constant, is_float, sole_reader
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.rewrite import IsInteger

# Ops of one computed operand that compute each element alone.
ELEMENTWISE = frozenset(
    {
        *("Relu", "LeakyRelu", "Elu", "Gelu", "Sigmoid", "HardSigmoid", "Swish", "HardSwish"),
        *("Mish", "Softplus", "Tanh", "Erf", "Clip"),
    }
)


def matmul_to_gemm(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace MatMul with a constant right matrix by Gemm, with the Add of a bias after it.

    Inputs of more than two dimensions are reshaped to [rows, K] and back, which needs all leading
    dimensions but one to be static. Layers that read one value read one Reshape of it, a Reshape
    behind a layer reads its rows, and what lies between two layers and computes each element alone
    works on rows. Nodes that stay float are not changed.
    """
    done, rows_of = 0, dict[ir.Value, ir.Value]()
    for node in list(model.graph):
        if node.op_type != "MatMul" or not is_integer(node):
            continue
        x, weight = node.inputs
        shape, matrix = dims(x), dims(weight)
        if x is None or shape is None or matrix is None or len(matrix) != 2:
            continue
        if not is_constant(weight) or not is_float(x) or len(shape) < 2:
            continue
        width = matrix[1]
        rows = [d if isinstance(d, int) else -1 for d in shape[:-1]]
        # Reshape can infer one size only.
        if len(shape) > 2 and rows.count(-1) > 1:
            continue
        add, bias = _following_bias(node, width)
        last = node if add is None else add
        inputs = [x, weight] if bias is None else [x, weight, bias]
        if len(shape) > 2:
            inputs[0] = _as_rows(x, node, rows_of)
        y = add_node(last, "Gemm", inputs, name=f"{node.name}/gemm", shape=(None, width))
        gemm = y.producer()
        if len(shape) > 2 and not _is_reshaped(last.outputs[0]):
            back = add_constant(model.graph, f"{node.name}.shape", np.array([*rows, width]))
            y = add_node(
                last, "Reshape", [y, back], name=f"{node.name}/restore", shape=(*shape[:-1], width)
            )
            if gemm is not None:
                rows_of[y] = gemm.outputs[0]
        replace_value(last.outputs[0], y)
        drop(last)
        if add is not None:
            drop(node)
        if gemm is not None:  # the layer keeps its name in the recipe and in the report
            gemm.name = node.name
        done += 1
    if done:
        remove_unused(model)
    return done


def _as_rows(x: ir.Value, before: ir.Node, rows_of: dict[ir.Value, ir.Value]) -> ir.Value:
    """Return a value as [rows, K].

    Args:
        x: [..., K].
        before: layer that reads it; new nodes come in front.
        rows_of: values that exist as rows; a new one is added.
    """
    if x in rows_of:
        return rows_of[x]
    # By the weights, as the last size of x may be unknown.
    node, width = x.producer(), (dims(before.inputs[1]) or (None,))[0]
    source, alone = x, node is not None and sole_reader(x) is before
    if node is not None and alone and node.op_type in ELEMENTWISE:
        operand = node.inputs[0]
        if operand in rows_of and sole_reader(operand) is node:
            node.replace_input_with(0, rows_of[operand])
            x.shape = ir.Shape((None, width))
            return x
    if node is not None and alone and node.op_type == "Reshape" and node.inputs[0] is not None:
        source = node.inputs[0]
    graph = before.graph
    assert graph is not None and isinstance(width, int)
    flat = add_constant(graph, f"{before.name}.rows", np.array([-1, width]))
    name = f"{before.name}/flatten"
    rows_of[x] = add_node(before, "Reshape", [source, flat], name=name, shape=(None, width))
    return rows_of[x]


def _is_reshaped(value: ir.Value) -> bool:
    """Return whether only a Reshape reads a value, whose sizes are constants."""
    reader = sole_reader(value)
    sizes = (
        constant(reader.inputs[1]) if reader is not None and reader.op_type == "Reshape" else None
    )
    return sizes is not None and 0 not in sizes


def _following_bias(node: ir.Node, width: object) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the Add of a row [width] that alone reads a MatMul, and its constant."""
    add = sole_reader(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None, None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    array = constant(other)
    if other is None or array is None or array.shape not in ((width,), (1, width)):
        return None, None
    return add, other


def normalize_gemm(model: ir.Model, is_integer: IsInteger) -> int:
    """Fold alpha, beta and transA of a Gemm with constant weights, and flatten its bias.

    W' = alpha * W, b' = beta * b in float64; a transposed input becomes a Transpose in front.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "Gemm" or not is_constant(node.inputs[1]):
            continue
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        if bias_value is not None and not is_constant(bias_value):
            continue
        alpha, beta = (float(attribute(node, k, 1.0)) for k in ("alpha", "beta"))
        weight, bias = constant(node.inputs[1]), constant(bias_value)
        if weight is None:
            continue
        width = weight.shape[0 if attribute(node, "transB", 0) else 1]
        flat = bias is None or bias.shape == (width,)
        transposed = attribute(node, "transA", 0)
        if alpha == 1.0 and (beta == 1.0 or bias is None) and flat and not transposed:
            continue
        if bias is not None and not flat:
            # One row for all rows; [M, 1] is a column, even where M happens to be the width.
            if bias.size != 1 and (bias.shape[-1] != width or bias.size != width):
                continue
            bias = np.broadcast_to(bias.reshape(-1), (width,))
        if alpha != 1.0:
            scaled = (weight.astype(np.float64) * alpha).astype(weight.dtype)
            node.replace_input_with(1, add_constant(model.graph, f"{node.name}.weight", scaled))
        if bias is not None:
            scaled = (bias.astype(np.float64) * beta).astype(weight.dtype)
            node.replace_input_with(2, add_constant(model.graph, f"{node.name}.bias", scaled))
        if transposed:
            shape = dims(node.inputs[0])
            x = add_node(
                node, "Transpose", [node.inputs[0]], {"perm": [1, 0]}, shape=shape and shape[::-1]
            )
            node.replace_input_with(0, x)
        set_attributes(node, alpha=1.0, beta=1.0, transA=0)
        done += 1
    return done
