"""Refuse models and data that a run cannot use, before any work."""

import onnx_ir as ir

from qtool.data import DataSection, Dataset, drop_overlap
from qtool.errors import UnsupportedError
from qtool.graph.queries import dims
from qtool.metrics.classification import check_label_range
from qtool.metrics.registry import METRICS, find_metric
from qtool.recipe.model import Evaluate, Recipe

# Share of evaluation samples that may also be calibration samples before it is an error.
MAX_OVERLAP = 0.01


def check_metric(recipe: Recipe, evaluation: Dataset, trust_code: bool) -> None:
    """Refuse a metric that cannot be computed before minutes of work, not after.

    Raises:
        QtoolError: it needs labels and there are none, or its code is not there or not trusted.
    """
    evaluate = recipe.evaluate
    if evaluate is None:
        return
    if evaluation.labels is None and recipe.gates.max_drop is not None and evaluate.metric is None:
        raise recipe.error(
            ("gates", "max_drop"),
            f"the gate needs labels, but {evaluate.where} has none; give labels, or drop the gate",
        )
    if evaluate.metric is None:
        return
    metric = find_metric(evaluate.metric, evaluate.code, trust_code)
    if evaluation.labels is None and metric.needs_labels:
        raise recipe.error(
            ("evaluate", "metric"),
            f"{evaluate.metric} needs labels, but {evaluate.where} has none; give labels, or use "
            "cosine or sqnr, which compare with the float model",
        )


def check_labels(evaluate: Evaluate | None, evaluation: Dataset, model: ir.Model) -> None:
    """Refuse class numbers outside the model's classes before minutes of work, not after.

    Raises:
        DataError: there are such labels.
    """
    labels, shape = evaluation.labels, dims(model.graph.outputs[0])
    if evaluate is None or labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return
    if evaluate.metric is not None and not _has_class_labels(evaluate.metric):
        return
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1:
        check_label_range(labels, shape[1])


def _has_class_labels(name: str) -> bool:
    return name in METRICS and METRICS[name].class_labels


def check_first_output(model: ir.Model, name: str) -> None:
    """Refuse a first output by which two files cannot be compared sample by sample.

    Raises:
        UnsupportedError: it is not computed, no tensor of numbers, or a single number.
    """
    value = model.graph.outputs[0]
    if value.producer() is None:
        kind = "an input" if value.is_graph_input() else "a constant"
    elif isinstance(value.type, ir.SequenceType | ir.OptionalType):
        kind = "no tensor"
    elif value.dtype == ir.DataType.STRING:
        kind = "text"
    elif dims(value) == ():
        kind = "one number for the whole batch"
    else:
        return
    raise UnsupportedError(
        f'model {name}: the first output, "{value.name}", is {kind}; it is what both files are '
        "compared by: put an output that has numbers for every sample first"
    )


def disjoint(
    recipe: Recipe, section: DataSection, dataset: Dataset, evaluation: Dataset, use: str
) -> tuple[Dataset, list[str]]:
    """Return the samples of a section that are no evaluation samples, and notes for the report.

    Args:
        recipe: names the line to change.
        section: where the samples come from.
        dataset: the samples.
        evaluation: samples that both files are evaluated on.
        use: of the samples, for messages, such as "calibration".

    Raises:
        RecipeError: they share more than MAX_OVERLAP, or nothing would be left.
    """
    own = recipe.evaluate
    if section.allow_overlap or (own is not None and own.allow_overlap):
        return dataset, []
    rest, dropped = drop_overlap(dataset, evaluation)
    if len(dropped) > MAX_OVERLAP * evaluation.count or (dropped and rest.count == 0):
        raise recipe.error(
            ("evaluate",),
            f"{len(dropped)} of {evaluation.count} evaluation samples are {use} samples too "
            f"(first: {dropped[0]}), expected at most {MAX_OVERLAP:.0%}; "
            "give disjoint folders, use `take` to part one folder, or set allow_overlap: true",
        )
    if not dropped:
        return rest, []
    listed = ", ".join(dropped[:5]) + (" ..." if len(dropped) > 5 else "")
    return rest, [f"{len(dropped)} {use} samples are evaluation samples too, dropped: {listed}"]
