"""Calibrate without data: noise, at every BatchNorm rescaled to the statistics that it states."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qtool.calibration.class_scores import ClassScores, has_class_scores
from qtool.calibration.collect import constants, with_normals
from qtool.calibration.estimators.batchnorm import channel_normals
from qtool.calibration.extremes import SMOOTHING
from qtool.calibration.statistics import Stats, summarize
from qtool.data import Dataset, Synthetic
from qtool.errors import RecipeError
from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.queries import by_name, constant, dims

if TYPE_CHECKING:
    import torch

BATCH = 16
"""Samples of a batch, whose mean and deviation are rescaled: few enough for large images."""

# Samples whose patches give the covariance of the noise under a kernel.
PATCH_SAMPLES = 8


def check_batchnorm(model: ir.Model, names: Iterable[str]) -> None:
    """Refuse a model that states no statistics.

    Args:
        model: the rewritten float graph.
        names: the observed values.

    Raises:
        RecipeError: no value has a BatchNorm in front.
    """
    values = by_name(model.graph)
    if all(channel_normals(values[name]) is None for name in names):
        raise RecipeError(
            "ranges without data come from BatchNormalization nodes, and this model has none "
            "behind an integer layer (an export may have folded them); export it with BatchNorm, "
            "or give calibration samples",
            ("calibrate", "synthetic"),
        )


def collect_synthetic(
    model: ir.Model,
    names: tuple[str, ...],
    batches: Iterable[Mapping[str, np.ndarray]],
    on_batch: Callable[[int], None] = lambda rows: None,
    smoothing: float = SMOOTHING,
) -> dict[str, Stats]:
    """Return statistics of the named values on noise, with every BatchNorm at its own statistics.

    ::

        y_c <- |gamma_c| (y_c - mean(y_c)) / std(y_c) + beta_c     over each batch, channel c

    behind each layer that a BatchNorm was folded into. What follows (sums, pools, logits) is
    computed from these values, so that its range is that of data which has the stated statistics,
    whatever the noise is like.

    Source: the idea that BatchNorm states the statistics of the data is that of Nagel et al. 2019,
        sec. 4.2, arXiv:1906.04721; see also Cai et al. 2020, "ZeroQ", arXiv:2001.00281, which
        optimizes inputs until they have these statistics.
        Departure: the values are rescaled on their way, which needs no gradients.

    Args:
        model: the rewritten float graph.
        names: values to observe.
        batches: input name -> noise.
        on_batch: called with the number of samples after each batch.
        smoothing: averaging constant of moving averages.
    """
    import torch

    from qtool.runtime.executor import Executor

    values = by_name(model.graph)
    observer = _Observer(constants(values, names), smoothing)
    observed = [name for name in names if values[name].const_value is None]
    run = Executor(model)
    with torch.inference_mode():
        for batch in batches:
            rows = len(next(iter(batch.values())))
            observer.start_batch(observed, rows)
            run(batch, observer, observed)
            on_batch(rows)
    return with_normals(values, observer.stats)


class _Observer:
    """Rescale values behind a BatchNorm, and add up the statistics of the observed ones."""

    def __init__(self, stats: dict[str, Stats], smoothing: float) -> None:
        self.stats, self._smoothing = stats, smoothing
        self._observed: frozenset[str] = frozenset()
        self._number = self._rows = 0

    def start_batch(self, observed: Iterable[str], rows: int) -> None:
        """Begin another batch of so many samples."""
        self._observed, self._rows = frozenset(observed), rows
        self._number += 1

    def __call__(self, value: ir.Value, tensor: "torch.Tensor") -> "torch.Tensor":
        """Return the value as its readers get it."""
        if (norm := value.meta.get("batchnorm")) is not None:
            tensor = _rescaled(tensor, *norm)
        if (name := value.name or "") in self._observed:
            array = tensor.numpy()
            part = summarize(array, True, self._number, self._rows, self._smoothing)
            if value.producer() is not None and has_class_scores(value):
                part = replace(part, scores=ClassScores.of(array))
            self.stats[name] = self.stats[name] + part
        return tensor


def _rescaled(y: "torch.Tensor", beta: np.ndarray, gamma: np.ndarray) -> "torch.Tensor":
    """Return a batch [N, C, ...] with mean beta and deviation |gamma| in every channel."""
    axes = [axis for axis in range(y.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(y.dim())]
    mean, std = y.mean(axes, keepdim=True), y.std(axes, correction=0, keepdim=True)
    scale = y.new_tensor(np.abs(gamma)).reshape(shape) / std.clamp(min=1e-12)
    return (y - mean) * scale + y.new_tensor(beta).reshape(shape)


def input_moments(model: ir.Model, dataset: Dataset) -> tuple[tuple[float, ...], float] | None:
    """Return mean of each channel and deviation of the input by the first layer's BatchNorm.

    ::

        W m + b = mu (least squares),   s^2 = median_c  var_c / (W_c S W_c')

    mu and var are the BatchNorm's running statistics behind a convolution that reads the input, W
    its weights (summed over the kernel for m), S the covariance of the noise under the kernel.

    Args:
        model: the float graph as it was read.
        dataset: noise of mean 0 and deviation 1.

    Returns:
        Mean and deviation; None where there are several inputs, or no such layer.
    """
    if len(model.graph.inputs) != 1:
        return None
    source = model.graph.inputs[0]
    for layer in model.graph:
        weight = constant(layer.inputs[1]) if layer.op_type == "Conv" else None
        if weight is None or _behind_pads(layer.inputs[0]) is not source:
            continue
        readers = [node for node, _ in layer.outputs[0].uses()]
        norms = [node for node in readers if node.op_type == "BatchNormalization"]
        norm = FoldedNorm.of(norms[0], layer) if norms else None
        if norm is not None and weight.shape[1] == (dims(source) or (0, 0))[1]:
            return _solved(weight.astype(np.float64), norm, dataset)
    return None


def _behind_pads(value: ir.Value | None) -> ir.Value | None:
    """Return the value that a chain of Pad nodes reads."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Pad":
        value = node.inputs[0]
    return value


def _solved(
    weight: np.ndarray, norm: FoldedNorm, dataset: Dataset
) -> tuple[tuple[float, ...], float] | None:
    """Return mean of each channel and deviation of the input of one convolution."""
    kernel, variance = weight.shape[2:], norm.var
    sums = weight.sum(tuple(range(2, weight.ndim)))
    means = np.linalg.lstsq(sums, norm.mean - norm.bias, rcond=None)[0]
    (noise,) = next(dataset.take(range(min(PATCH_SAMPLES, dataset.count))).batches(BATCH)).values()
    axes = tuple(range(2, noise.ndim))
    patches = np.lib.stride_tricks.sliding_window_view(noise, kernel, axes)
    rows = np.moveaxis(patches, 1, noise.ndim - 1).reshape(-1, weight[0].size)
    moments = rows[::7].T @ rows[::7] / len(rows[::7])
    flat = weight.reshape(len(weight), -1)
    predicted = np.sum((flat @ moments) * flat, 1)
    alive = (predicted > 0) & (variance > 1e-6 * variance.max())
    if not alive.any():
        return None
    ratio = float(np.median(variance[alive] / predicted[alive]))
    return tuple(float(m) for m in means), ratio**0.5


def with_input_moments(
    options: Synthetic, model: ir.Model, dataset: Dataset
) -> tuple[Synthetic, str]:
    """Return the options with mean and deviation of the inputs, and a note where they come from.

    Args:
        options: of the recipe.
        model: the float graph as it was read.
        dataset: noise of mean 0 and deviation 1.
    """
    explicit = options.mean is not None or options.std is not None
    moments = None if explicit else input_moments(model, dataset)
    if moments is not None:
        mean, std = (tuple(float(f"{m:.4g}") for m in moments[0]), float(f"{moments[1]:.4g}"))
        note = "input mean and deviation solved from the first BatchNorm"
        options = options.model_copy(update={"mean": mean, "std": std})
    elif explicit:
        note = "input mean and deviation are those of the recipe"
    else:
        note = "no BatchNorm behind the first layer: the input is taken to have mean 0, deviation 1"
    mean, std = options.mean or (0.0,), options.std or 1.0
    return options, f"{note}: mean {', '.join(f'{m:.3g}' for m in mean)}, deviation {std:.3g}"
