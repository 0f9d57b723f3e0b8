"""Open dimensions that exporters write as numbers."""

from collections.abc import Iterator

import onnx_ir as ir

# Key of a model's ``meta``: a size of 0 was released, by which ONNX Runtime refuses every sample.
EMPTY = "sizes of 0"


def had_empty_sizes(model: ir.Model) -> bool:
    """Return whether the file writes open dimensions as 0, so that it cannot run as it is."""
    return EMPTY in model.meta


def release_open_dimensions(model: ir.Model) -> int:
    """Replace dimensions of -1, and of 0 in inputs and outputs, by dimensions without a size.

    PaddlePaddle's exporter writes a size that the caller chooses as -1 or 0, which ONNX reads as
    sizes. A value without elements has no samples, so no input can mean 0 as a size.

    Args:
        model: changed in place.

    Returns:
        The number of values that were changed.
    """
    changed = 0
    for value, smallest in _values(model.graph):
        if value.shape is None:
            continue
        sizes = [None if isinstance(d, int) and d < smallest else d for d in value.shape]
        if sizes != list(value.shape):
            if 0 in value.shape:
                model.meta[EMPTY] = True
            value.shape = ir.Shape(sizes)
            changed += 1
    return changed


def _values(graph: ir.Graph) -> Iterator[tuple[ir.Value, int]]:
    """Yield each value with the smallest number that is a size of one of its dimensions."""
    for value in (*graph.inputs, *graph.outputs):
        yield value, 1
    for node in graph.all_nodes():
        for value in node.outputs:
            yield value, 0
