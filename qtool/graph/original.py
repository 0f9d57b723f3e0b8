"""The float network before a rewrite changed its function; it is the teacher in training."""

import onnx_ir as ir

_ORIGINAL = "original"


def store_original(model: ir.Model) -> None:
    """Store a copy of the graph in the model, unless an earlier one is there.

    Args:
        model: about to be changed.
    """
    if _ORIGINAL not in model.meta:
        model.meta[_ORIGINAL] = model.clone()


def original(model: ir.Model) -> ir.Model:
    """Return the stored copy; the model itself where there is none."""
    stored: ir.Model = model.meta.get(_ORIGINAL, model)
    return stored
