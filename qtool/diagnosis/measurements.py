"""Measure values and sites of a plan on a few calibration samples, for the rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch

from qtool.calibration.collect import observed_values
from qtool.data import Dataset
from qtool.diagnosis.statistics import clipped_share
from qtool.graph.queries import by_name, dims, nodes_by_name, weight_axis
from qtool.quant.plan import QuantPlan, Site
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps.context import Context

# Elements of each value and batch that quantiles and clipped shares are counted on.
COUNTED = 1 << 14
QUANTILE = 0.999


@dataclass
class ValueStatistics:
    """The float values of one activation that has a grid.

    Attributes:
        channels_first: whether the channels are axis 1, as of images; else they are the last.
        lo, hi: limits over all samples.
        first: limits over the first half of the samples.
        limits: largest magnitude of each channel, [C].
        quantiles: 99.9 % quantile of the magnitudes of each batch.
        clipped: share of elements outside the grid, mean over the batches.
    """

    channels_first: bool = False
    lo: float = 0.0
    hi: float = 0.0
    first: tuple[float, float] = (0.0, 0.0)
    limits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    quantiles: list[float] = field(default_factory=list)
    clipped: float = 0.0

    @property
    def quantile(self) -> float:
        """Median of the batches' quantiles: a few samples with outliers do not raise it."""
        return float(np.median(self.quantiles)) if self.quantiles else 0.0

    def add(self, tensor: torch.Tensor, grid: tuple[float, float], weight: float) -> None:
        """Add a batch that is ``weight`` of all samples."""
        flat = tensor.reshape(-1)
        some = flat[:: max(1, len(flat) // COUNTED)].numpy()
        self.lo = min(self.lo, float(flat.min()))
        self.hi = max(self.hi, float(flat.max()))
        self.quantiles.append(float(np.quantile(np.abs(some), QUANTILE)))
        self.clipped += weight * clipped_share(some, *grid)
        if tensor.ndim > 1:
            limits = (
                tensor.abs().movedim(1 if self.channels_first else -1, 0).flatten(1).amax(1).numpy()
            )
            self.limits = np.maximum(self.limits, limits) if self.limits.size else limits


@dataclass
class SiteStatistics:
    """One layer with weights: its weights, and its error alone, on float inputs.

    Attributes:
        weight_limits: largest magnitude of each output channel, [C]; of the plan's float weights.
        channels_first: whether the output's channels are axis 1; else they are the last.
        mean_error: of each output channel, quantized minus float, [C].
        square_error: mean squared error of each channel, [C].
        square: mean square of the float output of each channel, [C].
    """

    weight_limits: np.ndarray
    channels_first: bool = False
    mean_error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square_error: np.ndarray = field(default_factory=lambda: np.zeros(0))
    square: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise; infinite without noise."""
        noise, signal = float(self.square_error.sum()), float(self.square.sum())
        return float("inf") if noise <= 0 or signal <= 0 else 10 * float(np.log10(signal / noise))

    def add(self, expected: torch.Tensor, output: torch.Tensor, weight: float) -> None:
        """Add a batch that is ``weight`` of all samples."""
        channel = 1 if self.channels_first else -1
        y = expected.movedim(channel, 0).flatten(1).double()
        error = output.movedim(channel, 0).flatten(1).double() - y
        parts = (error.mean(1), error.square().mean(1), y.square().mean(1))
        old = (self.mean_error, self.square_error, self.square)
        self.mean_error, self.square_error, self.square = (
            weight * new.numpy() + (before if before.size else 0.0)
            for new, before in zip(parts, old, strict=True)
        )


@dataclass(frozen=True)
class Measurements:
    """Statistics of a plan's values and of its layers with weights, by name."""

    values: Mapping[str, ValueStatistics]
    sites: Mapping[str, SiteStatistics]


def measure(context: Context, plan: QuantPlan, samples: Dataset) -> Measurements:
    """Run the float network, and each quantized layer alone on its float input.

    Args:
        context: the float graph.
        plan: frozen.
        samples: calibration samples.
    """
    model = context.model
    executor, simulation = Executor(model), Simulation(model, plan)
    grids = {name: plan.params(name) for name in observed_values(model, plan)}
    limits = {
        name: (float(grid.lo.min()), float(grid.hi.max()))
        for name, grid in grids.items()
        if grid is not None
    }
    first = channels_first(model, plan)
    values = {name: ValueStatistics(name in first) for name in limits}
    sites = {
        site.name: SiteStatistics(weight_limits(model, plan, site), site.output in first)
        for site in plan.sites.values()
        if site.weight is not None
    }
    names = {*limits, *(plan.sites[s].inputs[0] for s in sites)}
    names |= {plan.sites[s].output for s in sites}
    done = 0
    for feeds, valid in context.feeds(samples, rows=1):
        floats = _float_values(executor, feeds, names)
        weight = valid / samples.count
        for name, statistics in values.items():
            statistics.add(context.without_padding(floats[name], valid), limits[name], weight)
        if done < samples.count / 2:
            for statistics in values.values():
                statistics.first = (statistics.lo, statistics.hi)
        done += valid
        for name, layer in sites.items():
            source, output = plan.sites[name].inputs[0], plan.sites[name].output
            result = simulation({**feeds, source: floats[source]}, [output])[output]
            expected = context.without_padding(floats[output], valid)
            layer.add(expected, context.without_padding(result, valid), weight)
    return Measurements(values, sites)


def channels_first(model: ir.Model, plan: QuantPlan) -> set[str]:
    """Return the values whose channels are axis 1: those around convolutions and pools, and images.

    Args:
        model: the rewritten graph.
        plan: names the sites.
    """
    spatial = [site for site in plan.sites.values() if "Conv" in site.op or "Pool" in site.op]
    names = {name for site in spatial for name in (*site.inputs, site.output)}
    shapes = {name: dims(value) for name, value in by_name(model.graph).items()}
    return names | {name for name, shape in shapes.items() if shape is not None and len(shape) == 4}


def weight_limits(model: ir.Model, plan: QuantPlan, site: Site) -> np.ndarray:
    """Return the largest magnitude of each output channel's weights, [C].

    Args:
        model: the rewritten graph.
        plan: of the site.
        site: a layer with weights.
    """
    node = nodes_by_name(model.graph)[site.name]
    name = site.weight or ""
    array = plan.weight(name, by_name(model.graph)[name])
    axis = weight_axis(node)
    return np.asarray(np.abs(array).max(axis=tuple(k for k in range(array.ndim) if k != axis)))


def _float_values(
    executor: Executor, feeds: Mapping[str, np.ndarray], names: set[str]
) -> dict[str, torch.Tensor]:
    """Run the float network on a batch and return the named values."""
    tensors: dict[str, torch.Tensor] = {}

    def record(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        if value.name in names:
            tensors[value.name] = tensor.float().cpu()
        return tensor

    with torch.inference_mode():
        executor(feeds, record)
    return tensors
