"""Refusal of graphs whose declared sizes no machine holds, before anything is allocated."""

from math import prod

import onnx
import onnx_ir as ir

from qtool.errors import ModelError
from qtool.graph.queries import dims, is_constant, name_of
from qtool.loading.file_checks import graphs
from qtool.runtime.memory import usable_memory

MOST_PROPAGATED = 1 << 20
# Copies of the outputs while those of two runs are compared.
COMPARED_COPIES = 4


def check_sizes(model: ir.Model, name: str, samples: int = 1) -> None:
    """Check that the values that a node reads and writes fit into memory, and the outputs twice.

    They are the least that any run needs, and that comparing two of them needs.

    Args:
        model: with inferred shapes.
        name: of the model, for messages.
        samples: of a call; dimensions without a size count as so many.

    Raises:
        ModelError: names the node and its largest value; or the outputs are too large.
    """
    limit = usable_memory()
    call = "one call" if samples == 1 else f"a call of {samples} samples"
    for node in model.graph.all_nodes():
        values = {value for value in (*node.inputs, *node.outputs) if value is not None}
        sizes = {value: _bytes(value, samples) for value in values if not is_constant(value)}
        total = sum(sizes.values())
        if total > limit:
            largest = max(sizes, key=lambda value: sizes[value])
            shape = [str(size) for size in dims(largest) or ()]
            raise ModelError(
                f'model {name}: node "{name_of(node)}" ({node.op_type}) reads and writes '
                f'{total / 1e9:,.1f} GB for {call}, of which "{largest.name}" '
                f"[{', '.join(shape)}] is the largest part; this machine has {limit / 1e9:,.1f} "
                "GB: export it for smaller samples, or with a smaller batch"
            )
    outputs = COMPARED_COPIES * sum(_bytes(value, samples) for value in model.graph.outputs)
    if outputs > limit:
        raise ModelError(
            f"model {name}: comparing its outputs takes {outputs / 1e9:,.1f} GB for {call}; this "
            f"machine has {limit / 1e9:,.1f} GB: export it for smaller samples, or with a smaller "
            "batch"
        )


def has_long_vector(proto: onnx.ModelProto) -> bool:
    """Return whether a vector has more elements than shape inference should follow one by one.

    With data propagation ONNX keeps each of them as a possible size, in about 50 bytes.

    Args:
        proto: with inferred shapes.
    """
    return any(
        len(shape.dim) == 1 and shape.dim[0].dim_value > MOST_PROPAGATED
        for graph in graphs(proto.graph)
        for info in (*graph.input, *graph.value_info, *graph.output)
        for shape in (info.type.tensor_type.shape,)
    )


def _bytes(value: ir.Value, samples: int) -> int:
    """Return the least bytes of a value; 0 where rank or type are unknown, or for text."""
    shape, kind = dims(value), value.dtype
    if shape is None or kind is None or kind in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return 0
    return prod(size if isinstance(size, int) else samples for size in shape) * kind.bitwidth // 8
