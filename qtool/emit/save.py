"""ONNX files out: one file, or above 1.5 GB the weights in a file of their own beside it."""

from pathlib import Path

import onnx_ir as ir

# Above this size protobuf is at risk, and weights go to a file of their own.
EXTERNAL_BYTES = 1_500_000_000


def save_model(model: ir.Model, path: Path) -> None:
    """Write the file; above 1.5 GB weights go to ``<name>.data`` beside it."""
    total = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    if total > EXTERNAL_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)
