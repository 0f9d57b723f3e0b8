"""Sizes of the batches in which calibration data is read."""

from collections.abc import Iterable

import onnx_ir as ir

from qtool.calibration.observation import returned_elements
from qtool.graph.queries import by_name, sample_elements

# Elements of all observed values together in one batch: bounds memory at about 4 bytes each.
BATCH_ELEMENTS = 1 << 22


def batch_size(elements: int, count: int) -> int:
    """Return the batch size with which values stay within BATCH_ELEMENTS.

    Args:
        elements: of one sample, of all values that are held together.
        count: samples in the data set.

    Returns:
        1 to 64, at most ``count``.
    """
    return int(min(max(BATCH_ELEMENTS // max(elements, 1), 1), 64, max(count, 1)))


def held_elements(model: ir.Model, names: Iterable[str]) -> int:
    """Count the elements of one sample of all observed values.

    Args:
        model: the rewritten graph, with shapes.
        names: the observed values.
    """
    values = by_name(model.graph)
    return sum(sample_elements(values[name]) for name in names)


def pass_elements(model: ir.Model, names: Iterable[str]) -> int:
    """Count the elements of one sample that bound the batch of a calibration pass.

    They are those that the session returns, or those of the largest value, where these are more:
    a value that is summarized inside the session is in memory for as long as its readers run.

    Args:
        model: the rewritten graph, with shapes.
        names: the observed values.
    """
    values = by_name(model.graph)
    observed = [values[name] for name in names]
    returned = sum(map(returned_elements, observed))
    return max(returned, *map(sample_elements, observed), 0)
