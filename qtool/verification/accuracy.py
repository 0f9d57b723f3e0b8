"""Compare the outputs of the float model, the simulation and the file by a metric."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qtool.metrics.confidence import share_interval
from qtool.metrics.registry import METRICS, Metric, MetricResult, score_outputs
from qtool.metrics.registry import agreement as class_agreement
from qtool.report.schema import Accuracy

# Fewer labelled samples do not show whether a network is at chance.
MIN_CHANCE_SAMPLES = 20


@dataclass(frozen=True)
class NamedMetric:
    """A metric with the name that the report shows."""

    name: str
    metric: Metric


def metric_for(metric: NamedMetric | None, outputs: np.ndarray) -> NamedMetric | None:
    """Return the metric of a run; without classes and labels, ``sqnr``.

    Args:
        metric: of the recipe; None where there are no labels and no metric.
        outputs: of the float model, [N, ...].
    """
    if metric is None and agreement(outputs, outputs) is None:
        return NamedMetric("sqnr", METRICS["sqnr"])
    return metric


def measure_accuracy(
    metric: NamedMetric | None, outputs: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> Accuracy:
    """Return the accuracy of float model and file on the same samples.

    Args:
        metric: None: only the share of samples for which both choose the same class.
        outputs: "float" and "quantized" -> first output [N, ...].
        labels: [N, ...]; not read by metrics against the float model.

    Raises:
        DataError: outputs and labels do not fit the metric.
    """
    float_outputs, quantized = outputs["float"], outputs["quantized"]
    classes = metric is None or metric.metric.classes
    same = agreement(float_outputs, quantized) if classes else None
    samples = len(float_outputs)
    same_ci95 = None if same is None else _rounded(share_interval(same, samples))
    if metric is None:
        return Accuracy(samples=samples, agreement=same, agreement_ci95=same_ci95)
    result = score_outputs(metric.metric, outputs, labels)
    values = _values(metric, result)
    return Accuracy(
        metric=metric.name,
        unit=metric.metric.unit or None,
        samples=samples,
        float=values.get("float"),
        quantized=values.get("quantized"),
        quantized_ci95=_rounded(result.quantized_interval),
        drop=None if result.drop is None else round(result.drop, 6),
        drop_ci95=_rounded(result.interval),
        agreement=same,
        agreement_ci95=same_ci95,
        lower_is_better=metric.metric.lower_is_better or None,
        chance=chance(labels) if metric.metric.majority_baseline else None,
        classes=float_outputs.shape[1] if metric.metric.class_labels else None,
    )


def _rounded(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (round(interval[0], 4), round(interval[1], 4))


def _values(metric: NamedMetric, result: MetricResult) -> dict[str, float]:
    """Return the rounded scores by model, without the float model where it is the reference."""
    return {
        name: round(value, 6)
        for name, value in result.values.items()
        if not (metric.metric.reference and name == "float")
    }


def with_simulated(
    accuracy: Accuracy,
    metric: NamedMetric | None,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
) -> tuple[Accuracy, float | None]:
    """Return the accuracy with that of the simulation, and how often it agrees with the file in %.

    Args:
        accuracy: of float model and file.
        metric: of the run.
        outputs: "float", "quantized" and "simulated" on the samples that were simulated.
        labels: of these samples.
    """
    if metric is None:
        return accuracy, None
    result = score_outputs(metric.metric, outputs, labels)
    simulated = _values(metric, result).get("simulated")
    same = agreement(outputs["simulated"], outputs["quantized"]) if metric.metric.classes else None
    samples = len(outputs["simulated"])
    update = {"simulated": simulated, "simulated_samples": samples}
    return accuracy.model_copy(update=update), same


def chance(labels: np.ndarray | None) -> float | None:
    """Return the share of the most frequent label in %, which always naming one class scores.

    Args:
        labels: [N]; None for fewer than MIN_CHANCE_SAMPLES.
    """
    if labels is None or labels.ndim != 1 or len(labels) < MIN_CHANCE_SAMPLES:
        return None
    return round(100 * float(np.unique(labels, return_counts=True)[1].max()) / len(labels), 4)


def agreement(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return how often both choose the same class, in %; None where the output has no classes."""
    if first.ndim < 2 or first.shape[1] < 2:
        return None
    return round(class_agreement(first, second), 4)
