"""Describe the float model and each quantized layer for the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import WEIGHTED_OPS, is_constant, macs, parameters
from qtool.quant.plan import QuantPlan
from qtool.report.report import Layer, ModelPart
from qtool.verification.file_size import FileParts


def model_part(name: Path | str, sha256: str, model: ir.Model) -> ModelPart:
    """Describe the float model by its parameters and multiply-accumulates.

    Args:
        name: path of the file, or the torch model's name.
        sha256: of the model.
        model: the float graph.
    """
    return ModelPart(
        path=str(name),
        sha256=sha256,
        parameters=parameters(model.graph),
        macs=total_macs(model) or None,
    )


def total_macs(model: ir.Model) -> int:
    """Return the multiply-accumulates of one sample; nodes of unknown shapes count 0."""
    return sum(macs(node) for node in model.graph)


def decibels(ratio: float | None) -> float | None:
    """Return a ratio as the report holds it: rounded, None where it is infinite."""
    return round(ratio, 3) if ratio is not None and np.isfinite(ratio) else None


def layers_part(
    model: ir.Model,
    plan: QuantPlan,
    noise_db: Mapping[str, float | None],
    parts: Mapping[str, FileParts],
) -> list[Layer]:
    """Return one row for each weighted layer, in graph order.

    Args:
        model: the rewritten float graph.
        plan: frozen.
        noise_db: node name -> signal-to-quantization-noise ratio in dB.
        parts: node name -> bytes in the file.
    """
    layers = []
    for node in model.graph:
        site = plan.sites.get(node.name or "")
        if site is not None and site.weight is not None:
            weight, read = plan.params(site.weight), plan.params(site.inputs[0])
        else:
            # Inputs 1 and 2 are the weights of layers; a Gather reads its table as input 0.
            constants = [v for v in node.inputs[:3] if v is not None and is_constant(v)]
            stored = [v.name or "" for v in constants if v.name in plan.weight_only]
            if not stored and (node.op_type not in WEIGHTED_OPS or not is_constant(node.inputs[1])):
                continue
            weight, read = plan.params(stored[0]) if stored else None, None
        activations: int | Literal["float", "dynamic"] = "float" if read is None else read.spec.bits
        dynamic = plan.dynamic.get(node.name or "")
        names = dynamic.nodes if dynamic is not None else (node.name or "",)
        size = sum((parts[name] for name in names if name in parts), FileParts())
        layers.append(
            Layer(
                name=node.name or "",
                op=node.op_type,
                weight_bits=weight.spec.bits if weight is not None else "float",
                activation_bits="dynamic" if node.name in plan.dynamic else activations,
                granularity=weight.spec.granularity.name if weight is not None else None,
                sqnr_db=decibels(noise_db.get(node.name or "")),
                bytes=size.total - size.graph,
                payload_bytes=size.payload,
                scale_bytes=size.scales,
                code_book_bytes=size.code_books,
            )
        )
    return layers
