"""Count the weights of a file that are 0, and its size after deflate."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import name_of
from qtool.pruning.method import PrunedLayer, layer_nodes
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import align
from qtool.report.sparsity_schema import ChannelSparsity, LayerSparsity, SparsityPart

CHUNK_BYTES = 1 << 22


def sparsity_part(
    model: ir.Model,
    plan: QuantPlan,
    files: Iterable[Path],
    float_files: Iterable[Path],
    channels: ChannelSparsity | None = None,
) -> SparsityPart:
    """Return the report's part about zeros, counted in the codes that were written.

    Args:
        model: the rewritten graph.
        plan: frozen.
        files: the quantized file and its external data.
        float_files: the float file and its external data.
        channels: that were removed before.
    """
    layers = []
    for node in layer_nodes(model):
        zeros = _zeros(plan, PrunedLayer(node, 0.0))
        share = round(int(zeros.sum()) / max(zeros.size, 1), 6)
        row = LayerSparsity(
            name=name_of(node), weights=zeros.size, zeros=int(zeros.sum()), sparsity=share
        )
        layers.append(row)
    total, count = sum(row.weights for row in layers), sum(row.zeros for row in layers)
    return SparsityPart(
        sparsity=round(count / max(total, 1), 6),
        weights=total,
        zeros=count,
        compressed_bytes=deflated_bytes(files),
        float_compressed_bytes=deflated_bytes(float_files),
        channels=channels,
        layers=layers,
    )


def _zeros(plan: QuantPlan, layer: PrunedLayer) -> np.ndarray:
    """Return True for each weight of a layer that is exactly 0 in the file."""
    codes = plan.codes.get(layer.weight)
    if codes is None:
        return np.asarray(plan.weight(layer.weight, layer.value) == 0)
    return np.asarray(codes == align(plan.qparams(layer.weight), codes)[1])


def deflated_bytes(files: Iterable[Path]) -> int:
    """Return the bytes of files after deflate at its highest level, each compressed alone."""
    total = 0
    for path in files:
        deflate = zlib.compressobj(9)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                total += len(deflate.compress(chunk))
        total += len(deflate.flush())
    return total
