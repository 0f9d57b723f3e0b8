"""The fake-quantized graph as a torch module: weights, scales and BatchNorm learn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import nn

from qtool.errors import RecipeError
from qtool.graph.batchnorm import FoldedNorm
from qtool.graph.queries import by_name, constant, nodes_by_name
from qtool.qat import batchnorm, distributed, untrainable
from qtool.qat.block_outputs import block_outputs
from qtool.qat.quantizers.clipped import SqueezedWeight
from qtool.qat.quantizers.fixed import FixedWeight
from qtool.qat.quantizers.functions import beside, straight_through, widened
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import (
    NEGLIGIBLE_SCALE,
    Codebook,
    PerChannel,
    QuantParams,
    fake_quantize,
)
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import raw_edges

T = torch.Tensor

BATCHNORM = ("live", "frozen", "folded")


class QatNetwork(nn.Module):
    """One plan on its graph, differentiable; ``forward`` computes what the emitted file will.

    The graph stays as the emitter will write it, with BatchNorm folded. Where a BatchNorm was
    folded into a layer and learns on, the layer's weight here is the one before folding, and the
    BatchNorm is computed behind the layer; :meth:`freeze` folds it into scales and biases, exactly:
    codes keep their magnitude.

    Attributes:
        weights, norms: learned, by position of their site; tied weights are one.
        biases: learned, by position among them; a layer has a bias or a norm.
        weight_grids, activation_grids: the quantizers' modules.
        blocks: values that end a block of the network, by name.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: QuantPlan,
        quantizer: Any,
        batchnorm: str = "live",
        device: str = "cpu",
    ) -> None:
        """Make the module.

        Args:
            model: the rewritten graph; read only.
            plan: with grids of activations and weights; codes are not looked at.
            quantizer: an entry of QAT_QUANTIZERS with its options.
            batchnorm: ``live`` (batch statistics), ``frozen`` (running ones) or ``folded``.
            device: where to compute.

        Raises:
            RecipeError: a grid cannot be trained (a code book, a scale that is not free, a grid
                found at run time), or BatchNorm learns on with one scale for all channels.
        """
        super().__init__()
        _check(plan)
        self.plan, self.batchnorm = plan, batchnorm
        self.executor = Executor(model, device)
        self.raw = raw_edges(model, plan)
        self.outputs = tuple(str(v.name) for v in model.graph.outputs)
        self.blocks = block_outputs(model, plan)
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.norms = nn.ModuleDict()
        self.weight_grids = nn.ModuleDict()
        self.activation_grids = nn.ModuleDict()
        self._sites: dict[str, Site] = {}
        self._names: dict[str, str] = {}
        self._biases: dict[str, str] = {}
        self._hooks: dict[str, Any] = {}
        values, nodes = by_name(model.graph), nodes_by_name(model.graph)
        for site in plan.sites.values():
            if site.weight is not None and site.weight not in self._hooks:
                self._add_site(site, nodes[site.name], values, quantizer)
        self._add_biases(values)
        for name in sorted(plan.weight_only - self._hooks.keys()):
            key = f"stored{len(self.weights)}"
            self._add_weight(key, name, np.asarray(constant(values[name]), np.float32), quantizer)
        self._add_activations(values, quantizer)
        self.to(device)

    def _add_site(
        self, site: Site, node: ir.Node, values: Mapping[str, ir.Value], quantizer: Any
    ) -> None:
        key, weight_name = str(len(self._sites)), site.weight or ""
        weight, params = np.asarray(constant(values[weight_name]), np.float32), None
        norm = node.meta.get("folded_norm") if self.batchnorm != "folded" else None
        if any(len(values[name].uses()) > 1 for name in (weight_name, site.bias) if name):
            norm = None  # tied weights have one BatchNorm each; they train as they are
        if norm is not None:
            params = self._found(weight_name)
            if not isinstance(params.spec.granularity, PerChannel):
                raise RecipeError(
                    f"{site.name} has one scale for all channels, into which its BatchNorm cannot "
                    "be folded after training; use granularity: channel, or batchnorm: folded"
                )
            weight, params = unfolded(weight, params, norm)
            unit = partial(self._unit, key, self.plan.grid_of[site.inputs[0]])
            self.norms[key] = LiveNorm(norm, self.batchnorm == "live", unit)
            self._hooks[node.outputs[0].name or ""] = self.norms[key]
        self._add_weight(key, weight_name, weight, quantizer, params)
        if node.meta.get("structural_zeros"):
            squeezed = self.weight_grids[key]
            if isinstance(squeezed, SqueezedWeight):  # it has no level at 0
                self.weight_grids[key] = FixedWeight(squeezed.params, False)
            mask = torch.from_numpy((weight != 0).astype(np.float32))
            self.weights[key].register_hook(lambda grad: grad * mask.to(grad.device))
        self._sites[key] = site

    def _add_biases(self, values: Mapping[str, ir.Value]) -> None:
        """The biases of all sites: tied weights have one each; the norm behind a layer has its own.

        Layers that still share a bias have one code array, on the grid of the last (see freeze).
        """
        keys = {site.weight: key for key, site in self._sites.items()}
        for name, site in {s.bias: s for s in self.plan.sites.values() if s.bias}.items():
            key, bias = keys[site.weight], str(len(self.biases))
            if key in self.norms:
                self._hooks[name] = torch.zeros_like
                continue
            array = np.asarray(constant(values[name]), np.float32)
            self.biases[bias], self._biases[bias] = nn.Parameter(torch.tensor(array)), name
            grid = self.plan.grid_of[site.inputs[0]]
            self._hooks[name] = partial(self._bias, bias, key, grid)

    def _found(self, name: str) -> QuantParams:
        params = self.plan.params(name)
        if params is None:
            raise AssertionError(f"{name} has no grid")
        return params

    def _add_weight(
        self,
        key: str,
        name: str,
        weight: np.ndarray,
        quantizer: Any,
        params: QuantParams | None = None,
    ) -> None:
        self.weights[key] = nn.Parameter(torch.tensor(weight))
        self.weight_grids[key] = quantizer.weight(params or self._found(name), self.weights[key])
        self._names[key] = name
        self._hooks[name] = partial(self._weight, key)

    def _add_activations(self, values: Mapping[str, ir.Value], quantizer: Any) -> None:
        constants = {v for s in self.plan.sites.values() for v in (s.weight, s.bias)}
        self._grids: dict[str, str] = {}
        keys: dict[str, str] = {}
        operands: dict[str, QuantParams] = {}
        for name, grid in self.plan.grid_of.items():
            value, params = values[name], self.plan.params(name)
            if name in constants or name in self.plan.weight_only or params is None:
                continue
            producer = value.producer()
            if constant(value) is not None:
                operands[name] = params
                continue
            if grid not in keys:
                keys[grid] = str(len(keys))
                self.activation_grids[keys[grid]] = quantizer.activation(params)
            if producer is None or producer.name not in self.plan.data_movement_ops:
                self._grids[name] = keys[grid]
        for name, params in operands.items():  # on a grid that learns, or the calibrated one
            if self.plan.grid_of[name] in keys:
                self._grids[name] = keys[self.plan.grid_of[name]]
            else:
                self._hooks[name] = partial(fake_quantize, params=params)
        self._grid_keys = keys

    def forward(self, feeds: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, T]:
        """Outputs by name for a batch of inputs by name, then ``more`` values, as readers see them.

        A layer's output is what a BatchNorm folded into the layer makes of it.
        """
        names = tuple(dict.fromkeys((*self.outputs, *more)))
        return self.executor(feeds, self._observe, names, self.raw)

    def _observe(self, value: ir.Value, tensor: T) -> T:
        name = value.name or ""
        hook, tensor = self._hooks.get(name), widened(value, tensor)
        if hook is not None:
            tensor = hook(tensor)
        key = self._grids.get(name)
        return tensor if key is None else self.activation_grids[key](tensor)

    def _weight(self, key: str, tensor: T) -> T:
        """A layer's fake-quantized weights, in the place of the graph's."""
        found: T = self.weight_grids[key](self.weights[key])
        return found

    def _bias(self, bias: str, key: str, grid: str, tensor: T) -> T:
        """A layer's learned bias, rounded as the file will, in the place of the graph's."""
        unit = self._unit(key, grid)
        return straight_through(self.biases[bias] / unit) * unit

    def _unit(self, key: str, grid: str) -> T:
        """The step of a layer's int32 bias: input scale times weight scales, without gradient."""
        x, w = self.activation_grids[self._grid_keys[grid]].scale, self.weight_grids[key].scale
        return (x * w).detach()  # type: ignore[operator]

    def project(self) -> None:
        """After an optimizer step: scales and BatchNorm's factors back into their domain."""
        for grids in (self.weight_grids, self.activation_grids):
            for grid in grids.values():
                grid.project()  # type: ignore[operator]
        with torch.no_grad():
            for norm in self.norms.values():
                norm.gamma.clamp_(min=0)  # type: ignore[operator]

    def freeze(self) -> QuantPlan:
        """The plan with what was learned: grids, codes of weights, float biases in ``values``.

        ``freeze`` then rounds the biases, which need the activations' final scales.
        """
        grids, codes, values = dict(self.plan.grids), {}, dict(self.plan.weight_overrides)
        for grid, key in self._grid_keys.items():
            grids[grid] = self.activation_grids[key].freeze()[1]  # type: ignore[operator]
        for key, weight in self._names.items():
            found, params = self.weight_grids[key].freeze(self.weights[key])  # type: ignore[operator]
            array = found.detach().cpu().numpy().astype(params.container)
            site = self._sites.get(key)
            if key in self.norms:
                factor, shift = self.norms[key].affine()  # type: ignore[operator]
                array, params = refolded(array, params, factor)
                values[(site.bias if site else None) or ""] = shift.astype(np.float32)
            codes[weight], grids[self.plan.grid_of[weight]] = array, params
        values |= {n: self.biases[key].detach().cpu().numpy() for key, n in self._biases.items()}
        return replace(self.plan, grids=grids, codes=codes, weight_overrides=values)


class LiveNorm(nn.Module):
    """A BatchNorm behind a layer's raw output, channels along axis 1.

    In evaluation its shift is rounded as the bias it will become; in training it is not.

    Attributes:
        live: batch statistics while training, over the batches of all processes; else the running
            ones always.
    """

    mean: T
    var: T

    def __init__(
        self, norm: FoldedNorm, live: bool, unit: Callable[[], T], momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.live, self.epsilon, self.momentum, self.unit = live, norm.epsilon, momentum, unit
        # Signs of channels stand in the layer's weights, see unfolded.
        sign = np.where(norm.gamma < 0, -1.0, 1.0)
        self.gamma = nn.Parameter(torch.tensor(np.abs(norm.gamma), dtype=torch.float32))
        self.beta = nn.Parameter(torch.tensor(norm.beta, dtype=torch.float32))
        # The layer's own bias only moves the mean.
        mean = torch.tensor(sign * (norm.mean - norm.bias), dtype=torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("var", torch.tensor(norm.var, dtype=torch.float32))

    def forward(self, x: T) -> T:
        """Normalized, scaled and shifted."""
        if self.training and self.live:
            if distributed.count() > 1:
                return self._synced(x)
            if x.numel() == x.shape[1]:
                raise RecipeError(
                    "qat: a batch of 1 has no statistics for a BatchNorm of one pixel; use a "
                    "larger batch, or batchnorm: frozen"
                )
            vectors = (self.mean, self.var, self.gamma, self.beta)
            return F.batch_norm(x, *vectors, True, self.momentum, self.epsilon)
        factor = self.gamma / (self.var + self.epsilon).sqrt()
        step = self.unit() * factor.detach()
        shift = self.beta - self.mean * factor
        # A dead channel (factor 0) keeps its shift.
        rounded = straight_through(shift / torch.where(step == 0, 1.0, step)) * step
        shift = torch.where(step == 0, shift, rounded)
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return x * factor.reshape(shape) + shift.reshape(shape)

    def _synced(self, x: T) -> T:
        """As torch's own in training, over the rows of all processes."""
        y, mean, var, counted = batchnorm.batch_norm(x, self.gamma, self.beta, self.epsilon)
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.var.lerp_(var * counted / (counted - 1), self.momentum)
        return y

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """(factor, shift) per channel, float64, in inference."""
        gamma, beta, mean, var = (
            t.detach().cpu().double().numpy() for t in (self.gamma, self.beta, self.mean, self.var)
        )
        factor = gamma / np.sqrt(var + self.epsilon)
        return factor, beta - mean * factor


def _check(plan: QuantPlan) -> None:
    """Refuse what this module would train to something else than the file holds."""
    for name, grid in plan.grids.items():
        if isinstance(grid, Codebook):
            raise RecipeError(f'the code book of "{name}" {untrainable.CODE_BOOK}')
        if isinstance(grid, QuantParams) and grid.spec.scale_kind != "float":
            raise RecipeError(f'the scale of "{name}" {untrainable.SCALE}')
    if plan.dynamic:
        raise RecipeError(untrainable.DYNAMIC)


def unfolded(
    weight: np.ndarray, params: QuantParams, norm: FoldedNorm
) -> tuple[np.ndarray, QuantParams]:
    """Weights and per-channel grid before the BatchNorm was folded into them, but for its signs.

    Signs stay with the weights, so that what is folded in later is positive and any code, also the
    lowest, which has no opposite, stays what it is.
    """
    factor = np.abs(norm.gamma) / np.sqrt(norm.var + norm.epsilon)
    safe = np.where(factor == 0, 1.0, factor)
    raw = (weight.astype(np.float64) / beside(safe, weight, params)).astype(np.float32)
    scale = (params.scale.astype(np.float64) / safe).astype(np.float32)
    return raw, replace(params, scale=scale)


def refolded(
    codes: np.ndarray, params: QuantParams, factor: np.ndarray
) -> tuple[np.ndarray, QuantParams]:
    """Fold a BatchNorm's factors [C], none negative, into the grid; codes stay.

    A factor of 0 leaves codes 0 and scale 1; those of a code book, which may have no level 0, stay,
    on a scale that leaves nothing of their products.
    """
    if isinstance(params, Codebook):
        scale = np.maximum(params.scale * factor, NEGLIGIBLE_SCALE).astype(np.float32)
        return codes, replace(params, scale=scale)
    alive = beside(factor > 0, codes, params).astype(codes.dtype)
    scale = params.scale.astype(np.float64) * factor
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return codes * alive, replace(params, scale=scale)
