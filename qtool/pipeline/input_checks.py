"""Refuse models and data that a run cannot use, before any work."""

import onnx_ir as ir

from qtool.data import (
    DataSection,
    Dataset,
    drop_overlap,
)
from qtool.errors import UnsupportedError
from qtool.graph.queries import dims
from qtool.metrics.classification import check_label_range
from qtool.metrics.registry import find_metric
from qtool.recipe.model import Evaluate, Recipe
from qtool.steps.stage_cache import Record

# Share of evaluation samples that may also be calibration samples before it is an error.
MOST_OVERLAP = 0.01


# Metrics whose labels are class numbers, one for each sample.
CLASS_METRICS = ("top1", "top5", "accuracy", "f1")


def _check_metric(evaluate: Evaluate, judged: Dataset, recipe: Recipe, trust_code: bool) -> None:
    """Refuse a metric that cannot be computed before minutes of work, not after.

    Raises:
        QtoolError: it needs labels and there are none, or its code is not there or not trusted.
    """
    if judged.labels is None and recipe.gates.max_drop is not None and evaluate.metric is None:
        raise recipe.error(
            ("gates", "max_drop"),
            f"the gate needs labels, but {evaluate.where} has none; give labels, or drop the gate",
        )
    if evaluate.metric is None:
        return
    metric = find_metric(evaluate.metric, evaluate.code, trust_code)
    if judged.labels is None and metric.needs_labels:
        raise recipe.error(
            ("evaluate", "metric"),
            f"{evaluate.metric} needs labels, but {evaluate.where} has none; give labels, or use "
            "cosine or sqnr, which compare with the float model",
        )


def _check_labels(evaluate: Evaluate | None, judged: Dataset, model: ir.Model) -> None:
    """Refuse class numbers outside the model's classes before minutes of work, not after.

    Raises:
        DataError: there are such labels.
    """
    labels, shape = judged.labels, dims(model.graph.outputs[0])
    if evaluate is None or labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return
    if evaluate.metric is not None and evaluate.metric not in CLASS_METRICS:
        return
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1:
        check_label_range(labels, shape[1])


def check_first_output(model: ir.Model, name: str) -> None:
    """Refuse a first output by which two files cannot be compared sample by sample.

    Raises:
        UnsupportedError: it is not computed, no tensor of numbers, or a single number.
    """
    value = model.graph.outputs[0]
    if value.producer() is None:
        found = "an input" if value.is_graph_input() else "a constant"
    elif isinstance(value.type, ir.SequenceType | ir.OptionalType):
        found = "no tensor"
    elif value.dtype == ir.DataType.STRING:
        found = "text"
    elif dims(value) == ():
        found = "one number for the whole batch"
    else:
        return
    raise UnsupportedError(
        f'model {name}: the first output, "{value.name}", is {found}; it is what both files are '
        "judged by: put an output that has numbers for every sample first"
    )


def disjoint(
    recipe: Recipe,
    section: DataSection,
    dataset: Dataset,
    judged: Dataset,
    record: Record,
    what: str,
) -> Dataset:
    """The samples of a section without those that evaluation has too.

    Raises:
        RecipeError: they share more than MOST_OVERLAP, or nothing would be left.
    """
    own = recipe.evaluate
    if section.allow_overlap or (own is not None and own.allow_overlap):
        return dataset
    rest, dropped = drop_overlap(dataset, judged)
    if len(dropped) > MOST_OVERLAP * judged.count or (dropped and rest.count == 0):
        raise recipe.error(
            ("evaluate",),
            f"{len(dropped)} of {judged.count} evaluation samples are {what} samples too "
            f"(first: {dropped[0]}), expected at most {MOST_OVERLAP:.0%}; "
            "give disjoint folders, use `take` to part one folder, or set allow_overlap: true",
        )
    if dropped:
        record.notes.append(
            f"{len(dropped)} {what} samples are evaluation samples too and were dropped: "
            + ", ".join(dropped[:5])
            + (" ..." if len(dropped) > 5 else "")
        )
    return rest
