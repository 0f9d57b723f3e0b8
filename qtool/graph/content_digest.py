"""Digest of all that decides what a graph computes."""

import hashlib

import onnx_ir as ir


def content_digest(model: ir.Model) -> str:
    """Return a digest of nodes and constants: graphs of equal digests compute the same values.

    Args:
        model: its functions are inlined.
    """
    total = hashlib.sha256()
    for node in model.graph:
        total.update(ir.serde.serialize_node(node).SerializeToString(deterministic=True))
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        total.update(f"\0{name}\0{value.dtype}\0{value.shape}\0".encode())
        total.update(b"" if tensor is None else tensor.tobytes())
    return total.hexdigest()
