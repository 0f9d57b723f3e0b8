"""Choose the values by which two networks of one graph are compared, sample by sample."""

import onnx_ir as ir

from qtool.graph.queries import by_name, dims, is_constant, is_float, name_of

# The size of their results depends on the values that they read.
VALUE_SIZED = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})


def evaluated_output(model: ir.Model) -> str | None:
    """Return the first output whose size does not depend on values; None where there is none."""
    return next((name_of(value) for value in _sized_outputs(model.graph)), None)


def class_count(model: ir.Model) -> int:
    """Return the classes that the output by which files are compared scores; 0: it scores none.

    Scores are [N, classes], also with axes of size 1 behind.
    """
    output = evaluated_output(model)
    shape = None if output is None else dims(by_name(model.graph)[output])
    if shape is None or len(shape) < 2 or any(size != 1 for size in shape[2:]):
        return 0
    classes = shape[1]
    return classes if isinstance(classes, int) and classes > 1 else 0


def decisive_value(model: ir.Model) -> str:
    """Return the value by which plans are compared.

    It is the first output of floats whose size does not depend on values; without one, the first
    such output of integers; without outputs of a fixed size, what their size depends on: the boxes
    that NonMaxSuppression reads.
    """
    outputs = _sized_outputs(model.graph)
    floats = [value for value in outputs if is_float(value)]
    return name_of(
        next(iter([*floats, *outputs, *_deciding_sizes(model.graph), *model.graph.outputs]))
    )


def compared_values(model: ir.Model) -> tuple[str, ...]:
    """Return the values by which all results of a network are compared, element by element.

    They are the outputs of floats whose size does not depend on values; without any, the floats
    that such sizes depend on: the boxes and scores that NonMaxSuppression reads.
    """
    floats = [value for value in _sized_outputs(model.graph) if is_float(value)]
    return tuple(dict.fromkeys(map(name_of, floats or _deciding_sizes(model.graph))))


def has_probabilities(model: ir.Model) -> bool:
    """Return whether the value by which plans are compared comes from a Softmax."""
    producer = by_name(model.graph)[decisive_value(model)].producer()
    return producer is not None and producer.op_type == "Softmax"


def _sized_outputs(graph: ir.Graph) -> list[ir.Value]:
    """Return the outputs whose size does not depend on values."""
    unsized = _value_sized(graph)
    return [value for value in graph.outputs if value not in unsized]


def _deciding_sizes(graph: ir.Graph) -> list[ir.Value]:
    """Return the computed floats on which sizes depend."""
    return [
        value
        for node in graph
        if node.op_type in VALUE_SIZED
        for value in node.inputs
        if value is not None and is_float(value) and not is_constant(value)
    ]


def _value_sized(graph: ir.Graph) -> set[ir.Value]:
    """Return the values behind ops whose size depends on values."""
    sized = set[ir.Value]()
    for node in graph:
        if node.op_type in VALUE_SIZED or any(value in sized for value in node.inputs):
            sized.update(node.outputs)
    return sized
