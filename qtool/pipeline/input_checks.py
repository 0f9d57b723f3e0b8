"""Refuse models and data that a run cannot use, before any work."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.data import DataSection, Dataset, InputSpec, drop_overlap, drop_unusable
from qtool.data.inputs import fixed_batch
from qtool.errors import DataError, ModelError, QtoolError, UnsupportedError
from qtool.graph.compared_output import evaluated_output
from qtool.graph.queries import by_name, dims, parameters
from qtool.loading.size_checks import check_sizes
from qtool.metrics.classification import check_label_range, check_scores_shape
from qtool.metrics.registry import METRICS, find_metric
from qtool.recipe.model import Evaluate, Recipe
from qtool.runtime.ort_session import OrtSession
from qtool.verification.changes.thumbnails import image_of

# Share of evaluation samples that may also be calibration samples before it is an error.
MAX_OVERLAP = 0.01

# Share of calibration or training samples, or a single one, that may be left out because they are
# damaged or hold NaN.
MAX_UNUSABLE = 0.1

# Share of the largest output by which a sample may differ between a batch and a run of its own:
# kernels sum in another order.
TOLERANCE = 1e-2

# Fixed batches that are never too large, and rows of one for each sample.
MAX_BATCH, MAX_PADDING = 1024, 64

# Parameters from which another session of the model costs more time and memory than it is worth.
MAX_PARAMETERS = 200_000_000


def check_metric(recipe: Recipe, evaluation: Dataset, trust_code: bool) -> None:
    """Refuse a metric that cannot be computed before minutes of work, not after.

    Raises:
        QtoolError: it needs labels and there are none, or its code is not there or not trusted.
    """
    evaluate = recipe.evaluate
    if evaluate is None:
        return
    if evaluate.expect is not None and (evaluation.labels is None or is_relative(evaluate.metric)):
        raise recipe.error(
            ("evaluate", "expect"),
            "needs the float model's accuracy, which takes labels and a metric that reads them; "
            "give both, or remove the key",
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


def check_thumbnails(recipe: Recipe, evaluation: Dataset) -> None:
    """Refuse small images of changed samples where the report lists none, or none can be drawn.

    Raises:
        RecipeError: the samples are no images, or the metric does not compare classes.
    """
    evaluate = recipe.evaluate
    if evaluate is None or not evaluate.thumbnails:
        return
    key = ("evaluate", "thumbnails")
    if evaluate.metric is not None and not (
        evaluate.metric in METRICS and METRICS[evaluate.metric].classes
    ):
        raise recipe.error(
            key,
            f"shows samples that change their class, which {evaluate.metric} does not compare; "
            "remove the key",
        )
    batch = next(iter(evaluation.take([0]).batches(1)))
    if image_of(batch) is None:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
        raise recipe.error(
            key, f"the samples of {evaluate.where} are no images ({shapes}); remove the key"
        )


def is_relative(metric: str | None) -> bool:
    """Return whether a metric compares with the float model, which then has no value itself."""
    return metric in METRICS and METRICS[metric].reference


def check_labels(
    evaluate: Evaluate | None, evaluation: Dataset, model: ir.Model
) -> tuple[str, ...]:
    """Refuse labels that are no classes of the model before minutes of work, not after.

    Returns:
        Notes for the report.

    Raises:
        DataError: the output holds no class scores, or class numbers lie outside its classes.
    """
    labels, output = evaluation.labels, evaluated_output(model)
    if evaluate is None or labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return ()
    if evaluate.metric is not None and not has_class_labels(evaluate.metric):
        return ()
    value = None if output is None else by_name(model.graph)[output]
    shape = None if value is None else dims(value)
    # Numbers of classes are no scores; what reads scores says so, and names the output.
    if value is None or shape is None or (value.dtype is not None and value.dtype.is_integer()):
        return ()
    check_scores_shape(shape)
    if not isinstance(shape[1], int):
        return ()
    check_label_range(labels, shape[1])
    return _missing_classes(evaluate, evaluation.classes, shape[1])


def _missing_classes(
    evaluate: Evaluate, classes: tuple[str, ...] | None, outputs: int
) -> tuple[str, ...]:
    """Return a note where numbering the names of too few classes may give wrong labels."""
    if classes is None or evaluate.classes is not None or len(classes) >= outputs:
        return ()
    return (
        f"WARNING: {evaluate.where} has {len(classes)} classes and the model's first output "
        f"{outputs}: sorted by name, {classes[0]} is taken for class 0 and {classes[-1]} for class "
        f"{len(classes) - 1}; if that is wrong, give `classes`, all {outputs} names in the model's "
        "order, or an empty folder for each missing class",
    )


def has_class_labels(name: str) -> bool:
    """Return whether the labels of a metric are class numbers, one for each sample."""
    return name in METRICS and METRICS[name].class_labels


def check_first_output(model: ir.Model, name: str, batch: int | None) -> None:
    """Refuse a first output by which two files cannot be compared sample by sample.

    Args:
        model: the float graph.
        name: of the model, for messages.
        batch: samples of a call; None where the model takes any number.

    Raises:
        UnsupportedError: it is not computed, no tensor of numbers, or a single number.
    """
    name_of_output = evaluated_output(model)
    if name_of_output is None:
        return
    value = next(each for each in model.graph.outputs if each.name == name_of_output)
    if value.producer() is None:
        kind = "an input" if value.is_graph_input() else "a constant"
    elif isinstance(value.type, ir.SequenceType | ir.OptionalType):
        kind = "no tensor"
    elif value.dtype == ir.DataType.STRING:
        kind = "text"
    elif dims(value) == () and batch != 1:
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

    Without ``evaluate`` the evaluation samples are some of the calibration samples: they may be
    many, and are left out.

    Args:
        recipe: names the line to change.
        section: where the samples come from.
        dataset: the samples.
        evaluation: samples that both files are evaluated on.
        use: of the samples, for messages, such as "calibration".

    Raises:
        RecipeError: they share more than MAX_OVERLAP with ``evaluate``, or nothing would be left.
    """
    own = recipe.evaluate
    if section.allow_overlap or (own is not None and own.allow_overlap):
        return dataset, []
    rest, dropped = drop_overlap(dataset, evaluation)
    too_many = own is not None and len(dropped) > MAX_OVERLAP * evaluation.count
    if too_many or (dropped and rest.count == 0):
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


def usable(dataset: Dataset, use: str) -> tuple[Dataset, list[str]]:
    """Return samples that are whole and finite, and a warning that names the others.

    Args:
        dataset: the samples.
        use: of the samples, for messages, such as "calibration".

    Raises:
        DataError: more than MAX_UNUSABLE of them, or all, are damaged or hold NaN or infinity.
    """
    if dataset.synthetic:
        return dataset, []
    rest, dropped = drop_unusable(dataset)
    if not dropped:
        return rest, []
    share = f"{len(dropped)} of {dataset.count} {use} samples are damaged or hold NaN or Inf"
    if len(dropped) > max(1, MAX_UNUSABLE * dataset.count):
        raise DataError(
            f"{share}, expected at most {MAX_UNUSABLE:.0%}; repair or remove them, the first: "
            f"{next(iter(dropped.values()))}"
        )
    listed = ", ".join([*dropped][:5]) + (" ..." if len(dropped) > 5 else "")
    return rest, [f"WARNING: {share} and are left out: {listed}; repair or remove them"]


def probe_batch(
    model: ir.Model, specs: Mapping[str, InputSpec], dataset: Dataset, name: str
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Run the float model on one sample and on two.

    Networks with a state (LSTM, GRU), and reshapes that exporters wrote for one sample, declare a
    batch axis that they cannot use: a run fails on two samples, or mixes them.

    Args:
        model: the float graph as it was read; unchanged.
        specs: its inputs.
        dataset: samples for it.
        name: of the model, for messages.

    Returns:
        The inputs, with a batch fixed to 1 where the model computes single samples only, and notes
        for the report.

    Raises:
        ModelError: its batch is fixed to far more samples than there are, or two samples need more
            memory than there is.
        UnsupportedError: the model cannot run on a sample.
    """
    unchanged = dict(specs)
    batch = fixed_batch(specs.values())
    if batch is not None:
        _check_fixed_batch(batch, dataset, name)
        return unchanged, ()
    if parameters(model.graph) > MAX_PARAMETERS or not specs:
        return unchanged, ()
    first = _rows(dataset, specs, [0])
    check_sizes(model, name, samples=min(dataset.count, 2))
    with OrtSession(model, level="basic") as session:
        try:
            session(first)
        except Exception as error:  # the runtime raises one class per status
            shapes = {key: list(array.shape) for key, array in first.items()}
            raise UnsupportedError(
                f"model {name}: ONNX Runtime cannot run it on one sample, {shapes}: "
                f"{' '.join(str(error).split())}; check the data's sizes and which axis counts the "
                f"samples (`input: {{{next(iter(shapes))}: {{batch_axis: none}}}}` where none "
                "does), or export it again"
            ) from error
        if dataset.count < 2:
            return unchanged, ()
        reason = _reason(session, first, dataset, specs, evaluated_output(model))
    if not reason:
        return unchanged, ()
    fixed = {key: _of_one_sample(spec) for key, spec in specs.items()}
    return fixed, (f"samples are computed one by one: {reason}",)


def _check_fixed_batch(batch: int, dataset: Dataset, name: str) -> None:
    """Refuse a batch that is nearly all padding: each call computes every row of it."""
    if batch > max(MAX_BATCH, MAX_PADDING * dataset.count):
        raise ModelError(
            f"model {name}: its batch is fixed to {batch} samples and the data has "
            f"{dataset.count}, so nearly all of each call would be padding; export it with an open "
            "batch"
        )


def _of_one_sample(spec: InputSpec) -> InputSpec:
    """Return the input with a batch fixed to 1."""
    if spec.batch_axis is None:
        return spec
    shape = list(spec.shape)
    shape[spec.batch_axis] = 1
    return replace(spec, shape=tuple(shape))


def _rows(
    dataset: Dataset, specs: Mapping[str, InputSpec], indices: list[int]
) -> dict[str, np.ndarray]:
    batch = next(iter(dataset.take(indices).batches(len(indices))))
    return {name: batch[name] for name in specs}


def _reason(
    session: OrtSession,
    first: Mapping[str, np.ndarray],
    dataset: Dataset,
    specs: Mapping[str, InputSpec],
    evaluated: str | None,
) -> str:
    """Return why two samples cannot share a batch; "" where they can."""
    last = _rows(dataset, specs, [dataset.count - 1])
    for name, spec in specs.items():
        if spec.batch_axis is None and not np.array_equal(first[name], last[name]):
            return f'the input "{name}", one array for all samples, differs between them'
    try:
        pair = session(_rows(dataset, specs, [0, dataset.count - 1]))
    except (QtoolError, MemoryError):
        return ""  # samples of several sizes are refused later, by name
    except Exception:  # the runtime raises one class per status
        return "the model fails on a batch of two"
    single, other = session(first), session(last)
    for name, array in pair.items():
        is_evaluated = name == evaluated
        alone = (single[name], other[name])
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim == 0:
            continue  # sequences of tensors are lists
        if is_evaluated and any(len(each) != 1 for each in alone):
            return f'the first axis of the output "{name}" does not count samples'
        if reason := _mixing(array, alone, (0,) if is_evaluated else range(array.ndim)):
            return f'the output "{name}" {reason}'
    return ""


def _mixing(pair: np.ndarray, alone: tuple[np.ndarray, np.ndarray], axes: Iterable[int]) -> str:
    """Return why an output of two samples is not that of each of them, joined along an axis."""
    reason = ""
    for axis in axes:
        parts = [np.moveaxis(each, axis, 0) for each in alone]
        if any(len(part) != 1 for part in parts) or parts[0].shape != parts[1].shape:
            continue
        both = np.moveaxis(pair, axis, 0)
        if not all(np.isfinite(part).all() for part in parts):
            return ""  # calibration refuses NaN and infinity, by name
        if both.shape != (2, *parts[0].shape[1:]):
            reason = reason or "has no row for each sample of a batch"
            continue
        scale = max(float(max(part.max(), -part.min())) if part.size else 0.0 for part in parts)
        if all(
            (np.abs(row - part[0]) <= TOLERANCE * scale + 1e-6).all()
            for row, part in zip(both, parts, strict=True)
        ):
            return ""
        reason = "of a sample depends on the rest of its batch"
    return reason
