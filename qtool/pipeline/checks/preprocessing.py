"""Compare the recipe's preprocessing with the usual ones by the float model's accuracy.

A few evaluation samples with labels decide; the result is a diagnosis and chooses nothing.
"""

from dataclasses import replace

import numpy as np

from qtool.data import Dataset, open_dataset
from qtool.data.usual_preprocess import as_yaml, usual_preprocess
from qtool.errors import DataError
from qtool.graph.queries import dims, macs, parameters
from qtool.metrics.classification import classes_last
from qtool.metrics.preprocessing_scores import PreprocessingCheck, PreprocessingScore
from qtool.metrics.registry import DEFAULT_METRIC, find_metric
from qtool.pipeline.context import Prepared
from qtool.pipeline.input_checks import MAX_PARAMETERS, has_class_labels
from qtool.report.schema import Accuracy, Gate
from qtool.runtime.ort_session import OrtSession

# Samples that are scored: few for a large network, more for a small one, as they are cheap.
SAMPLES = 64
MOST_SAMPLES = 256
MACS = 1e10
# Those of them that choose the FINALISTS that are scored on all.
FIRST = 12
FIRST_SHARE = 4
FINALISTS = 3
# Hits that a finalist must have more than the recipe's settings among the first samples.
MORE_HITS = 2
# Below these accuracies in %, the usual settings are tried, and those with other sizes too.
LOW, POOR = 80.0, 50.0
# The same as LOW where more samples than SAMPLES are cheap, so that smaller losses show.
LOW_IF_CHEAP = 90.0
# Points by which the float model may miss the expected accuracy.
TOLERANCE = 1.0


def check_preprocessing(prepared: Prepared) -> PreprocessingCheck | None:
    """Score the float model with the recipe's preprocessing; where that is low, with usual ones.

    Args:
        prepared: its graph is not yet rewritten.

    Returns:
        The scores; None where there are no images with class labels, or the model is too large to
        be loaded once more.
    """
    context, data = prepared.context, prepared.evaluation.dataset
    if not _is_comparable(prepared):
        return None
    each = max(1, sum(macs(node) for node in context.model.graph))
    count = min(max(SAMPLES, min(MOST_SAMPLES, int(MACS / each))), data.count)
    chosen = [k * data.count // count for k in range(count)]
    threads, outputs = prepared.options.threads, [context.evaluated_output or ""]
    with context.cache.stage("preprocessing") as record:
        with OrtSession(context.model, outputs, threads, "basic") as session:
            scorer = _Scorer(session, prepared, chosen)
            name, settings = "the recipe's", as_yaml(data.preprocess) if data.preprocess else ""
            current = PreprocessingScore(name, settings, scorer.hits(data.take(chosen)))
            low = LOW_IF_CHEAP if count > SAMPLES else LOW
            others = scorer.others(current) if current.accuracy < low else []
        check = PreprocessingCheck(current, tuple(others))
        record.notes += preprocessing_notes(check)
    return check


def expectation_gates(prepared: Prepared, accuracy: Accuracy | None) -> list[Gate]:
    """Return the gate on the float model's accuracy; empty without ``evaluate.expect``.

    It passes from TOLERANCE points below the expectation on, as samples and decoders differ.
    """
    evaluate = prepared.recipe.evaluate
    if evaluate is None or evaluate.expect is None:
        return []
    if accuracy is None or accuracy.float is None:
        return []
    name = evaluate.metric or DEFAULT_METRIC
    metric = find_metric(name, evaluate.code, prepared.options.trust_code)
    sign = -1 if metric.lower_is_better else 1
    passed = sign * (accuracy.float - evaluate.expect) >= -TOLERANCE
    return [Gate(name="expect", limit=evaluate.expect, value=accuracy.float, passed=passed)]


def preprocessing_notes(check: PreprocessingCheck) -> list[str]:
    """Return the sentences for the report."""
    score = f"the float model scores {check.current.accuracy:.1f} % on {check.samples} samples"
    if check.better is None:
        return [score]
    listed = ", ".join(f"{each.name} {each.accuracy:.1f} %" for each in check.others)
    return [
        f"WARNING: {score} with the recipe's preprocess, {check.current.settings}; with others: "
        f"{listed}; if the model was trained so, write `preprocess: {check.better.settings}`"
    ]


def _is_comparable(prepared: Prepared) -> bool:
    """Return whether evaluation samples have an image and a label, and the model class scores."""
    data, evaluate = prepared.evaluation.dataset, prepared.recipe.evaluate
    graph = prepared.context.model.graph
    labels, shape = data.labels, dims(graph.outputs[0])
    metric = None if evaluate is None else evaluate.metric
    return (
        data.preprocess is not None
        and (metric is None or has_class_labels(metric))
        and labels is not None
        and labels.ndim == 1
        and labels.dtype.kind in "iu"
        and prepared.context.evaluated_output == graph.outputs[0].name
        and shape is not None
        and parameters(graph) <= MAX_PARAMETERS
    )


class _Scorer:
    """The float model on the same samples, preprocessed in several ways."""

    def __init__(self, session: OrtSession, prepared: Prepared, chosen: list[int]) -> None:
        self.session, self.chosen = session, chosen
        self.context, self.data = prepared.context, prepared.evaluation
        # The graph has the sizes of the samples; images of other sizes do not fit it.
        shapes = {value.name: dims(value) for value in self.context.model.graph.inputs}
        self.inputs = {
            name: replace(spec, shape=shapes[name] or spec.shape)
            for name, spec in self.context.inputs.items()
        }

    def hits(self, samples: Dataset) -> tuple[bool, ...]:
        """Return for each sample whether its label is the highest output."""
        guesses: list[int] = []
        fixed = self.context.fixed_batch
        for batch, valid in samples.calls(fixed or FIRST, fixed is not None):
            feeds = {name: batch[name] for name in self.context.inputs}
            (scores,) = self.session(feeds).values()
            guesses += classes_last(scores[:valid]).argmax(1).tolist()
        return tuple(bool(hit) for hit in np.array(guesses) == samples.labels)

    def others(self, current: PreprocessingScore) -> list[PreprocessingScore]:
        """Return the scores of the usual settings that are best on the first samples."""
        own = self.data.dataset.preprocess
        if own is None:
            return []
        few = max(FIRST, len(self.chosen) // FIRST_SHARE)
        first = range(0, len(self.chosen), max(1, len(self.chosen) // few))
        least = sum(current.hits[k] for k in first) + MORE_HITS
        candidates = []
        for name, settings in usual_preprocess(own, sizes=current.accuracy < POOR):
            section = self.data.section.model_copy(update={"preprocess": settings})
            try:
                dataset = open_dataset(section, self.inputs)
                samples = dataset.take([self.data.indices[k] for k in self.chosen])
                hits = sum(self.hits(samples.take(first)))
            except DataError:
                continue  # the images do not fit the model's input so
            if hits >= least:
                candidates.append((hits, name, as_yaml(settings), samples))
        best = sorted(candidates, key=lambda candidate: -candidate[0])[:FINALISTS]
        scores = [PreprocessingScore(name, text, self.hits(data)) for _, name, text, data in best]
        return sorted(scores, key=lambda score: -score.accuracy)
