"""The fake-quantized graph as a torch module: weights, scales and BatchNorm learn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from qtool.errors import RecipeError
from qtool.graph.compared_output import decisive_value
from qtool.graph.queries import by_name, constant, nodes_by_name
from qtool.qat.batchnorm import LiveNorm, fold_norm, unfold_norm
from qtool.qat.block_outputs import block_outputs
from qtool.qat.quantizers.base import (
    ActivationModule,
    GridModule,
    QatQuantizer,
    WeightModule,
    module_with_zero,
)
from qtool.qat.quantizers.restricted_scale import restrict_scale
from qtool.qat.quantizers.scales import broadcast_scale
from qtool.qat.quantizers.ste import straight_through
from qtool.qat.quantizers.trainable import check_trainable
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerChannel, QuantParams, fake_quantize
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import raw_edges

T = torch.Tensor

BATCHNORM = ("live", "frozen", "folded")


class QatNetwork(nn.Module):
    """One plan on its graph, differentiable; in evaluation it computes what the file will.

    The graph stays as the emitter will write it, with BatchNorm folded. Where a BatchNorm was
    folded into a layer and learns on, the layer's weight here is the one before folding, and the
    BatchNorm is computed behind the layer; :meth:`freeze` folds it into scales and biases, exactly:
    codes keep their magnitude.

    Attributes:
        weights, norms: learned, by position of their site; tied weights are one.
        biases: learned, by position among them; a layer has a bias or a norm.
        weight_grids: the quantizer's modules (WeightModule), by the keys of ``weights``.
        activation_grids: the quantizer's modules (ActivationModule), one for each grid.
        masks: names of pruned weights, by the keys of ``weights``; the mask is the buffer
            ``mask_KEY``, 0 where a weight is and stays 0, else 1.
        outputs: names of the graph's outputs.
        compared: name of the value that the loss reads, the first output of floats as a rule; see
            :func:`qtool.graph.compared_output.decisive_value`.
        blocks: values that end a block of the network, by name.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: QuantPlan,
        quantizer: QatQuantizer,
        batchnorm: str = "live",
        device: str = "cpu",
    ) -> None:
        """Make the module.

        Args:
            model: the rewritten graph; read only.
            plan: with grids of activations and weights; its codes are not used.
            quantizer: an entry of QAT_QUANTIZERS with its options.
            batchnorm: ``live`` (batch statistics), ``frozen`` (running ones) or ``folded``.
            device: where to compute.

        Raises:
            RecipeError: a grid cannot be trained (a width or code book that the quantizer does not
                train, scales of a form that its module does not keep, a grid found at run time), or
                BatchNorm learns on with one scale for all channels or scales of a fixed form.
        """
        super().__init__()
        check_trainable(plan, quantizer)
        self.plan, self.batchnorm = plan, batchnorm
        self.executor = Executor(model, device)
        self.raw = raw_edges(model, plan)
        self.outputs = tuple(str(v.name) for v in model.graph.outputs)
        self.compared = decisive_value(model)
        self.blocks = block_outputs(model, plan)
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.norms = nn.ModuleDict()
        self.weight_grids = nn.ModuleDict()
        self.activation_grids = nn.ModuleDict()
        self.masks: dict[str, str] = {}
        self._sites: dict[str, Site] = {}
        self._names: dict[str, str] = {}
        self._biases: dict[str, str] = {}
        self._hooks: dict[str, Any] = {}
        values, nodes = by_name(model.graph), nodes_by_name(model.graph)
        for site in plan.sites.values():  # tied weights: the first site's module serves all
            if site.weight is not None and site.weight not in self._hooks:
                self._add_site(site, nodes[site.name], values, quantizer)
        self._add_biases(values)
        for name in sorted(plan.weight_only - self._hooks.keys()):
            key = f"stored{len(self.weights)}"
            self._add_weight(
                key, name, np.asarray(plan.weight(name, values[name]), np.float32), quantizer
            )
        self._add_activations(values, quantizer)
        self._restrict_scales()
        for name in plan.weight_overrides.keys() - self._hooks.keys():  # weights that stay float
            array = torch.from_numpy(plan.weight_overrides[name])
            self._hooks[name] = partial(_replaced, array)
        self.to(device)

    def _add_site(
        self, site: Site, node: ir.Node, values: Mapping[str, ir.Value], quantizer: QatQuantizer
    ) -> None:
        """Add the weight of one site, and the BatchNorm behind it that learns on."""
        key, weight_name = str(len(self._sites)), site.weight or ""
        weight, params = (
            np.asarray(self.plan.weight(weight_name, values[weight_name]), np.float32),
            None,
        )
        norm = node.meta.get("folded_norm") if self.batchnorm != "folded" else None
        if any(len(values[name].uses()) > 1 for name in (weight_name, site.bias) if name):
            norm = None  # tied weights have one BatchNorm each; they train as they are
        if norm is not None:
            params = self._params(weight_name)
            if params.spec.scale_kind != "float":
                raise RecipeError(
                    f"{site.name} has {params.spec.scale_kind} scales, which a BatchNorm folded in "
                    "after training changes; use batchnorm: folded"
                )
            if not isinstance(params.spec.granularity, PerChannel):
                raise RecipeError(
                    f"{site.name} has one scale for all channels, into which its BatchNorm cannot "
                    "be folded after training; use granularity: channel, or batchnorm: folded"
                )
            weight, params = unfold_norm(weight, params, norm)
            bias_step = partial(self._bias_step, key, self.plan.grid_of[site.inputs[0]])
            self.norms[key] = LiveNorm(norm, self.batchnorm == "live", bias_step)
            self._hooks[node.outputs[0].name or ""] = self.norms[key]
        self._add_weight(key, weight_name, weight, quantizer, params)
        if node.meta.get("structural_zeros"):
            self.weight_grids[key] = cast(nn.Module, self._weight_grid(key).with_zero_level())
            mask = torch.from_numpy((weight != 0).astype(np.float32))
            self.weights[key].register_hook(lambda grad: grad * mask.to(grad.device))
        self._sites[key] = site

    def _add_biases(self, values: Mapping[str, ir.Value]) -> None:
        """Add the biases of all sites as parameters, but of those whose BatchNorm has a shift.

        Layers that share a bias have one code array, on the grid of the last (see ``freeze``).
        """
        keys = {site.weight: key for key, site in self._sites.items()}
        for name, site in {s.bias: s for s in self.plan.sites.values() if s.bias}.items():
            key, bias = keys[site.weight], str(len(self.biases))
            if key in self.norms:
                self._hooks[name] = torch.zeros_like
                continue
            array = np.asarray(self.plan.weight(name, values[name]), np.float32)
            self.biases[bias], self._biases[bias] = nn.Parameter(torch.tensor(array)), name
            grid = self.plan.grid_of[site.inputs[0]]
            self._hooks[name] = partial(self._bias, bias, key, grid)

    def _params(self, name: str) -> QuantParams:
        """Return the grid of a weight."""
        params = self.plan.params(name)
        if params is None:
            raise AssertionError(f"{name} has no grid")
        return params

    def _add_weight(
        self,
        key: str,
        name: str,
        weight: np.ndarray,
        quantizer: QatQuantizer,
        params: QuantParams | None = None,
    ) -> None:
        """Add a weight as a parameter, and its module on ``params`` or on its grid in the plan."""
        self.weights[key] = nn.Parameter(torch.tensor(weight))
        module = quantizer.weight(params or self._params(name), self.weights[key])
        self.weight_grids[key] = cast(nn.Module, module)
        self._names[key] = name
        self._hooks[name] = partial(self._weight, key)
        if name in self.plan.masks:
            self._add_mask(key, name)

    def _add_activations(self, values: Mapping[str, ir.Value], quantizer: QatQuantizer) -> None:
        """Add a module for each activation grid, and the rounding of constant operands."""
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
                self.activation_grids[keys[grid]] = cast(nn.Module, quantizer.activation(params))
            if producer is None or producer.name not in self.plan.data_movement_ops:
                self._grids[name] = keys[grid]
        for name, params in operands.items():  # rounded on a grid that learns, or as calibrated
            if self.plan.grid_of[name] in keys:
                self._grids[name] = keys[self.plan.grid_of[name]]
            else:
                self._hooks[name] = partial(fake_quantize, params=params)
        self._grid_keys = keys

    def _restrict_scales(self) -> None:
        """Let the scales of integer sites have the form that their grids request.

        ``fixed_point`` restricts multipliers s_w s_x / s_y, through the scales of weights.
        """
        for key in self.activation_grids:
            kind = self._activation_grid(key).params.spec.scale_kind
            if kind in ("power_of_two", "double_shift"):
                restrict_scale(self._activation_grid(key), "power_of_two")
        for key, site in self._sites.items():
            kind = self._weight_grid(key).params.spec.scale_kind
            if kind in ("power_of_two", "double_shift"):
                restrict_scale(self._weight_grid(key), kind)
            elif kind != "float" and site.output in self.plan.grid_of:
                grids = (self.plan.grid_of[site.inputs[0]], self.plan.grid_of[site.output])
                restrict_scale(self._weight_grid(key), kind, partial(self._scale_ratio, *grids))

    def _scale_ratio(self, x: str, y: str) -> float:
        """Return s_x / s_y of two activation grids."""
        pair = (self._activation_grid(self._grid_keys[grid]).scale.detach() for grid in (x, y))
        top, bottom = (float(scale) for scale in pair)
        return top / bottom

    def forward(self, feeds: Mapping[str, Any], extra: Sequence[str] = ()) -> dict[str, T]:
        """Compute the outputs by name, then the values named in ``extra``, as their readers do.

        A layer's output is taken behind the BatchNorm folded into the layer.

        Args:
            feeds: batch of inputs by name.
            extra: names of further values.
        """
        names = tuple(dict.fromkeys((*self.outputs, *extra)))
        return self.executor(feeds, self._observe, names, self.raw)

    def _observe(self, value: ir.Value, tensor: T) -> T:
        """Return a value as its readers get it: learned, normalized, rounded."""
        name = value.name or ""
        hook, tensor = self._hooks.get(name), to_float32(value, tensor)
        if hook is not None:
            tensor = hook(tensor)
        key = self._grids.get(name)
        return tensor if key is None else self.activation_grids[key](tensor)

    def _weight_grid(self, key: str) -> WeightModule:
        return cast(WeightModule, self.weight_grids[key])

    def _activation_grid(self, key: str) -> ActivationModule:
        return cast(ActivationModule, self.activation_grids[key])

    def _add_mask(self, key: str, name: str) -> None:
        """Prune the weights that the plan masks: they are 0 from now on, on a grid that holds 0."""
        mask = self.plan.masks[name]
        module = module_with_zero(self._weight_grid(key), self.weights[key], name)
        self.masks[key] = name
        self.weight_grids[key] = cast(nn.Module, module)
        # Whole numbers: a moving average of the network copies them.
        self.register_buffer(f"mask_{key}", torch.from_numpy(mask.astype(np.uint8)))
        self._zero_masked(key)

    def set_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        """Replace masks by others, which prune at least the same weights; names as in the plan."""
        for key, name in self.masks.items():
            mask = self._mask(key)
            mask.mul_(torch.from_numpy(masks[name].astype(np.uint8)).to(mask.device))
            self._zero_masked(key)

    def folded_weights(self) -> dict[str, np.ndarray]:
        """Return the weights that have a mask as the file will hold them, but for rounding."""
        weights = {n: self.weights[key].detach().cpu().numpy() for key, n in self.masks.items()}
        for key in self.masks.keys() & self.norms.keys():
            factor, array = cast(LiveNorm, self.norms[key]).affine()[0], weights[self.masks[key]]
            scale = broadcast_scale(factor, array, self._weight_grid(key).params)
            weights[self.masks[key]] = array * scale
        return weights

    def sparsity(self) -> float | None:
        """Return the share of the weights with a mask that is pruned; None where none has one."""
        masks = [self._mask(key) for key in self.masks]
        return 1 - float(torch.cat([m.flatten() for m in masks]).double().mean()) if masks else None

    def _mask(self, key: str) -> T:
        return cast(T, getattr(self, f"mask_{key}"))

    @torch.no_grad()
    def _zero_masked(self, key: str) -> None:
        self.weights[key].mul_(self._mask(key).to(self.weights[key]))

    def _weight(self, key: str, tensor: T) -> T:
        """Return a layer's fake-quantized weights, in the place of the graph's."""
        weight: T = self._weight_grid(key)(self.weights[key])
        return weight * self._mask(key) if key in self.masks else weight

    def _bias(self, bias: str, key: str, grid: str, tensor: T) -> T:
        """Return a layer's learned bias, rounded as in the file, in the place of the graph's."""
        step = self._bias_step(key, grid)
        return straight_through(self.biases[bias] / step) * step

    def _bias_step(self, key: str, grid: str) -> T:
        """Return input scale * weight scales, the step of the int32 bias, without gradient."""
        x = self._activation_grid(self._grid_keys[grid]).scale
        return (x * self._weight_grid(key).scale).detach()

    def live_norms(self) -> list[LiveNorm]:
        """Return the BatchNorms that use batch statistics in training."""
        norms = (cast(LiveNorm, norm) for norm in self.norms.values())
        return [norm for norm in norms if norm.live]

    def project(self) -> None:
        """Clamp scales, weights and BatchNorm's factors to their domain, pruned weights to 0.

        Call it after an optimizer step.
        """
        for key in self.masks:
            self._zero_masked(key)
        for key in self.weight_grids:
            self._weight_grid(key).project()
            self._weight_grid(key).clip_weight(self.weights[key].detach())
        for key in self.activation_grids:
            self._activation_grid(key).project()
        with torch.no_grad():
            for norm in self.norms.values():
                cast(LiveNorm, norm).gamma.clamp_(min=0)

    def advance(self, share: float) -> None:
        """Set how far training is, for methods with stages; call before every step.

        Args:
            share: of training that is done, 0 to 1.
        """
        for grids in (self.weight_grids, self.activation_grids):
            for index, grid in enumerate(grids.values()):
                cast(GridModule, grid).advance(share, index / len(grids))

    def penalty(self) -> T | None:
        """Return the sum of what the methods of weights add to the loss; None where none does."""
        terms = (self._weight_grid(key).penalty(weight) for key, weight in self.weights.items())
        present = [term for term in terms if term is not None]
        return torch.stack(present).sum() if present else None

    def freeze(self) -> QuantPlan:
        """Return the plan with learned grids, codes of weights, and biases as float overrides.

        :func:`qtool.quant.freeze.freeze` then rounds the biases, which need the final scales of
        activations.
        """
        grids, codes, values = dict(self.plan.grids), {}, dict(self.plan.weight_overrides)
        masks = dict(self.plan.masks)
        for grid, key in self._grid_keys.items():
            grids[grid] = self._activation_grid(key).freeze()
        for key, weight in self._names.items():
            rounded, params = self._weight_grid(key).freeze(self.weights[key])
            array = rounded.detach().cpu().numpy().astype(params.container)
            if key in self.masks:
                masks[weight] = self._mask(key).cpu().numpy() != 0
                array = array * masks[weight].astype(array.dtype)
            site = self._sites.get(key)
            if key in self.norms:
                factor, shift = cast(LiveNorm, self.norms[key]).affine()
                array, params = fold_norm(array, params, factor)
                values[(site.bias if site else None) or ""] = shift.astype(np.float32)
            codes[weight], grids[self.plan.grid_of[weight]] = array, params
        values |= {n: self.biases[key].detach().cpu().numpy() for key, n in self._biases.items()}
        return replace(self.plan, grids=grids, codes=codes, weight_overrides=values, masks=masks)


def to_float32(value: Any, tensor: T) -> T:
    """Return what torch.autocast computed in bfloat16 as float32; an observer for executors.

    Grids, BatchNorm and operators that autocast does not cast then get float32 alone.

    Args:
        value: of the graph; not used.
        tensor: its value.
    """
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _replaced(array: T, tensor: T) -> T:
    """Return the array that a step put in the place of a weight that does not learn."""
    return array.to(tensor)
