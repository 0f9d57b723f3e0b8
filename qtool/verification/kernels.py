"""What the report counts: bytes, kernels, layers, and the machine it was measured on."""

from collections import Counter

import numpy as np
import onnx_ir as ir

from qtool.quant.plan import QuantPlan
from qtool.report.report import Kernels

# Kernels of ONNX Runtime that compute on codes.
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

# Ops that move or describe data and compute nothing: neither integer nor float kernels.
MOVES = {
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
    """Count the kernels of the graph ONNX Runtime really executes.

    A QuantizeLinear or DequantizeLinear is stray when the plan has integers on both of its sides.

    Args:
        optimized: as the runtime wrote it.
        plan: frozen.
        saturating: layers in which pairs of products can leave int16.
    """
    stray = []
    made_in_integers = plan.integer_nodes
    writes = {site.output for site in plan.sites.values()}
    read_as_floats = {v.name for v in optimized.graph.outputs}
    for node in optimized.graph:
        op = node.op_type
        if op in ("QuantizeLinear", "DequantizeLinear"):
            value = _plain(node.outputs[0] if op == "QuantizeLinear" else node.inputs[0])
            readers = {n.name for o in node.outputs for n, _ in o.uses()}
            boundary = (
                value not in writes
                if op == "QuantizeLinear"
                else not readers & made_in_integers
                or bool(read_as_floats & {o.name for o in node.outputs})
            )
            if not boundary:
                stray.append(node.name or op)
    return _kernels(optimized, stray, saturating or False)


def file_kernels(optimized: ir.Model, int16_pairs: bool) -> Kernels:
    """The same for a file without a plan, another tool's.

    Stray are the QuantizeLinear and DequantizeLinear that face each other, and those around an op
    that reads codes and writes codes and yet computes in floats. Whether pairs of products saturate
    on a host that adds them in int16 is told by the largest int8 weight alone: above 64 they can.
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
    integer: Counter[str] = Counter()
    floating: Counter[str] = Counter()
    for node in optimized.graph:
        op = node.op_type
        if op.startswith("QLinear") or op in INTEGER_KERNELS:
            integer[op] += 1
        elif (
            op not in (*MOVES, "QuantizeLinear", "DequantizeLinear")
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
    name = value.name if value is not None else ""
    return (name or "").removesuffix("_quantized").removesuffix("_dequantized")


def _holds_floats(value: ir.Value | None) -> bool:
    return value is not None and (value.dtype is None or value.dtype == ir.DataType.FLOAT)


def _clips_codes(node: ir.Node) -> bool:
    """True for a Clip whose limits are integers; the types of its data are not in the file."""
    limits = [v.dtype for v in node.inputs[1:] if v is not None]
    return node.op_type == "Clip" and bool(limits) and ir.DataType.FLOAT not in limits
