"""What the report counts: bytes, kernels, layers, and the machine it was measured on."""

import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, is_constant, macs, parameters
from qtool.quant.plan import QuantPlan
from qtool.report.report import Kernels, Layer, ModelPart
from qtool.verification.file_size import FileParts

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


def model_part(name: Path | str, sha256: str, model: ir.Model) -> ModelPart:
    """Parameters and multiply-accumulates of the float model."""
    return ModelPart(
        path=str(name),
        sha256=sha256,
        parameters=parameters(model.graph),
        macs=total_macs(model) or None,
    )


def total_macs(model: ir.Model) -> int:
    """Multiply-accumulates of one sample, as far as shapes are known."""
    return sum(macs(node) for node in model.graph)


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


def layers_part(
    model: ir.Model,
    plan: QuantPlan,
    noise_db: Mapping[str, float | None],
    parts: Mapping[str, FileParts],
) -> list[Layer]:
    """One row per weighted layer, in graph order.

    Args:
        model: the rewritten float graph.
        plan: frozen.
        noise_db: signal to noise by node name.
        parts: bytes in the file by node name.
    """
    layers = []
    for node in model.graph:
        site = plan.sites.get(node.name or "")
        if site is not None and site.weight is not None:
            weight, read = plan.params(site.weight), plan.params(site.inputs[0])
        else:
            held = [v for v in node.inputs[:3] if v is not None and is_constant(v)]
            stored = [v.name or "" for v in held if v.name in plan.stored]
            if not stored and (node.op_type not in WEIGHTED_OPS or not is_constant(node.inputs[1])):
                continue
            weight, read = plan.params(stored[0]) if stored else None, None
        activations: int | Literal["float", "dynamic"] = "float" if read is None else read.spec.bits
        db = noise_db.get(node.name or "")
        dynamic = plan.dynamic.get(node.name or "")
        names = dynamic.nodes if dynamic is not None else (node.name or "",)
        found = sum((parts[name] for name in names if name in parts), FileParts())
        layers.append(
            Layer(
                name=node.name or "",
                op=node.op_type,
                weight_bits=weight.spec.bits if weight is not None else "float",
                activation_bits="dynamic" if node.name in plan.dynamic else activations,
                granularity=weight.spec.granularity.name if weight is not None else None,
                sqnr_db=round(db, 3) if db is not None and np.isfinite(db) else None,
                bytes=found.total - found.graph,
                payload_bytes=found.payload,
                scale_bytes=found.scales,
                code_book_bytes=found.code_books,
            )
        )
    return layers


def environment() -> dict[str, str | int | list[str]]:
    """Versions and the processor."""
    from qtool.runtime.ort_options import default_threads

    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
        "onnx": version("onnx"),
        "onnx_ir": version("onnx-ir"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": default_threads(),
        "isa": instruction_sets(),
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The vector extensions that decide which integer kernels run, empty where unknown."""
    words = _cpuinfo("flags").split() or _cpuinfo("Features").split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return [word for word in wanted if word in words]
