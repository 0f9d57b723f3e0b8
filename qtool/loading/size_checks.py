"""Refusal of graphs whose declared sizes no machine holds, before anything is allocated."""

from math import prod

import onnx_ir as ir

from qtool.errors import ModelError
from qtool.graph.queries import constant, dims, is_constant, name_of
from qtool.runtime.memory import usable_memory

MOST_PROPAGATED = 1 << 20


def check_sizes(model: ir.Model, name: str) -> None:
    """Check that the values that a node reads and writes fit into memory together.

    They are the least that any run needs; dimensions without a size count as 1.

    Args:
        model: with inferred shapes.
        name: of the model, for messages.

    Raises:
        ModelError: names the node and its largest value.
    """
    limit = usable_memory()
    for node in model.graph:
        values = {value for value in (*node.inputs, *node.outputs) if value is not None}
        sizes = {value: _bytes(value) for value in values if not is_constant(value)}
        total = sum(sizes.values())
        if total > limit:
            largest = max(sizes, key=lambda value: sizes[value])
            shape = [str(size) for size in dims(largest) or ()]
            raise ModelError(
                f'model {name}: node "{name_of(node)}" ({node.op_type}) reads and writes '
                f'{total / 1e9:,.1f} GB for one call, of which "{largest.name}" '
                f"[{', '.join(shape)}] is the largest part; this machine has {limit / 1e9:,.1f} "
                "GB: export it with a smaller batch, or with an open one"
            )


def has_large_fill(model: ir.Model) -> bool:
    """Return whether a ConstantOfShape has more elements than shape inference should follow.

    With data propagation ONNX keeps each of them as a possible size, in about 50 bytes.

    Args:
        model: any; constants may be external.
    """
    shapes = (
        constant(node.inputs[0])
        for node in model.graph.all_nodes()
        if node.op_type == "ConstantOfShape" and node.inputs
    )
    return any(
        shape is not None and prod(shape.ravel().tolist()) > MOST_PROPAGATED for shape in shapes
    )


def _bytes(value: ir.Value) -> int:
    """Return the least bytes of a value; 0 where rank or type are unknown, or for text."""
    shape, kind = dims(value), value.dtype
    if shape is None or kind is None or kind in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return 0
    return prod(size if isinstance(size, int) else 1 for size in shape) * kind.bitwidth // 8
