"""Count the integer and float kernels of the graph that ONNX Runtime executes."""

from collections import Counter

import numpy as np
import onnx_ir as ir

from qtool.quant.plan import QuantPlan
from qtool.report.report import Kernels

# Kernels of ONNX Runtime that compute on codes, besides those called QLinear...
INTEGER_KERNELS = {
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "QGemm",
    "NhwcMaxPool",
    "QAttention",
}

# Operators that move or describe data and compute nothing: neither integer nor float kernels.
DATA_MOVEMENT = {
    "Cast",
    "Concat",
    "ConstantOfShape",
    "DepthToSpace",
    "DynamicQuantizeLinear",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MemcpyFromHost",
    "Pad",
    "Range",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Shape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}


def kernels_part(optimized: ir.Model, plan: QuantPlan, saturating: list[str]) -> Kernels:
    """Count the kernels of the graph that ONNX Runtime executes for a file with a plan.

    A QuantizeLinear or DequantizeLinear is stray when the plan computes in integers on both of its
    sides: no kernel took it in.

    Args:
        optimized: the graph after the runtime's own optimizations.
        plan: frozen.
        saturating: layers in which pairs of products can leave int16.
    """
    stray = []
    integer_nodes = plan.integer_nodes
    writes = {site.output for site in plan.sites.values()}
    float_outputs = {v.name for v in optimized.graph.outputs}
    for node in optimized.graph:
        op = node.op_type
        if op in ("QuantizeLinear", "DequantizeLinear"):
            value = _plain(node.outputs[0] if op == "QuantizeLinear" else node.inputs[0])
            readers = {n.name for o in node.outputs for n, _ in o.uses()}
            boundary = (
                value not in writes
                if op == "QuantizeLinear"
                else not readers & integer_nodes
                or bool(float_outputs & {o.name for o in node.outputs})
            )
            if not boundary:
                stray.append(node.name or op)
    return _kernels(optimized, stray, saturating or False)


def file_kernels(optimized: ir.Model, int16_pairs: bool) -> Kernels:
    """Count the kernels of a file without a plan, such as one of another tool.

    Stray are a QuantizeLinear and the DequantizeLinear that undoes it, and those around an operator
    that reads codes and writes codes but computes in floats. Pairs of products can saturate in
    int16 where an int8 weight exceeds 64: 2 * 64 * 255 = 32640 still fits, 2 * 65 * 255 does not.

    Args:
        optimized: the graph after the runtime's own optimizations.
        int16_pairs: this machine adds products in pairs, in int16.
    """
    stray: set[ir.Node] = set()
    for node in optimized.graph:
        before = [v.producer() for v in node.inputs if v is not None]
        decoded = [n for n in before if n is not None and n.op_type == "DequantizeLinear"]
        after = [n for out in node.outputs for n, _ in out.uses()]
        coded = [n for n in after if n.op_type == "QuantizeLinear"]
        if node.op_type == "QuantizeLinear":
            back = {n for n in after if n.op_type == "DequantizeLinear"}
            stray.update((node, *back) if back and len(back) == len(set(after)) else ())
            stray.update((node, *decoded) if decoded else ())
        elif decoded and coded and node.op_type != "DequantizeLinear":
            stray.update((*decoded, *coded))
    wide = (
        v.const_value.numpy()
        for v in optimized.graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value is not None
    )
    risk = int16_pairs and any(a.size and np.abs(a.astype(int)).max() > 64 for a in wide)
    return _kernels(optimized, [node.name or node.op_type for node in stray], risk)


def _kernels(optimized: ir.Model, stray: list[str], risk: bool | list[str]) -> Kernels:
    """Count integer and float kernels by operator, and add the other parts of the report."""
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for node in optimized.graph:
        op = node.op_type
        if op.startswith("QLinear") or op in INTEGER_KERNELS:
            integer[op] += 1
        elif (
            op not in (*DATA_MOVEMENT, "QuantizeLinear", "DequantizeLinear")
            and not _clips_codes(node)
            and any(_holds_floats(v) for v in (*node.inputs, *node.outputs))
        ):
            floating[op] += 1
    return Kernels(
        integer=dict(integer),
        float=dict(floating),
        stray_quantize=sorted(stray),
        saturation_risk=risk,
    )


def _plain(value: ir.Value | None) -> str:
    """Return the name of a value in the plan, without the emitter's suffix."""
    name = value.name if value is not None else ""
    return (name or "").removesuffix("_quantized").removesuffix("_dequantized")


def _holds_floats(value: ir.Value | None) -> bool:
    return value is not None and (value.dtype is None or value.dtype == ir.DataType.FLOAT)


def _clips_codes(node: ir.Node) -> bool:
    """Return whether a Clip clips codes, by its limits: the file has no types of its data."""
    limits = [v.dtype for v in node.inputs[1:] if v is not None]
    return node.op_type == "Clip" and bool(limits) and ir.DataType.FLOAT not in limits
