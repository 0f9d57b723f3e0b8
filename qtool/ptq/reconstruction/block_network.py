"""One block of the quantized network as a torch module: rounding, steps and biases learn."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from qtool.graph.queries import by_name, constant, is_constant
from qtool.ptq.reconstruction.activations import Drop, LearnedActivation
from qtool.ptq.reconstruction.blocks import Block, is_read_outside, values_between
from qtool.ptq.reconstruction.rounding import LearnedWeight
from qtool.qat.quantizers.ste import straight_through
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import (
    Codebook,
    PerBlock,
    PerTensor,
    QuantParams,
    align,
    dequantize,
)
from qtool.simulation.fake_quant import Simulation

T = torch.Tensor

# A change of 1 of a bias in training is this share of the range of the layer's output.
BIAS_UNIT = 1 / 2


@dataclass(frozen=True)
class Learned:
    """The parts of a block that learn.

    Attributes:
        weight: makes the module of a layer's weights from the float weights and the plan's codes,
            both in units of codes, and the grid.
        steps: the steps of activations below 8 bits learn, the scales of weights, and biases.
        drop: leaves activations unrounded at random.
        narrow_only: weights of 8 bits and more keep their codes.
    """

    weight: Callable[[T, T, QuantParams], LearnedWeight]
    steps: bool
    drop: Drop
    narrow_only: bool


class LearnedBias(nn.Module):
    """A bias b + u d, rounded as in the file to input scale times weight scales.

    Attributes:
        change: learned, d, shape of the bias; u is a share of the range of the layer's output.
    """

    start: T
    unit: T

    def __init__(self, start: np.ndarray, size: float, step: Callable[[], T], learns: bool) -> None:
        """Make the module.

        Args:
            start: b.
            size: range of the layer's output.
            step: returns the step of the bias's grid, of current scales.
            learns: False: only the rounding follows the scales.
        """
        super().__init__()
        self._step = step
        self.register_buffer("start", torch.from_numpy(start.astype(np.float32)))
        self.register_buffer("unit", torch.tensor(BIAS_UNIT * size))
        self.change = nn.Parameter(torch.zeros_like(self.start), requires_grad=learns)

    @property
    def exact(self) -> T:
        """The bias before rounding."""
        return self.start + self.unit * self.change

    def forward(self) -> T:
        """Return the rounded bias."""
        step = self._step().detach()
        return straight_through(self.exact / step) * step


class BlockNetwork(nn.Module):
    """The part of a plan's network from the entry to the exit of a block, differentiable.

    Attributes:
        weights: of the block's layers, LearnedWeight by name.
        biases: of the same layers, LearnedBias by name.
        activations: LearnedActivation by grid, of the grids that round at the entry or behind it.
    """

    def __init__(self, model: ir.Model, plan: QuantPlan, block: Block, learned: Learned) -> None:
        """Make the module.

        Args:
            model: the rewritten graph.
            plan: every grid is calibrated.
            block: of the graph.
            learned: what learns.
        """
        super().__init__()
        self._plan, self._exit, self._learned = plan, block.exit, learned
        self._frozen = freeze(model, plan)
        self._simulation = Simulation(model, self._frozen)
        self.weights: dict[str, LearnedWeight] = {}
        self.biases: dict[str, LearnedBias] = {}
        self.activations: dict[str, LearnedActivation] = {}
        self._rounded: dict[str, LearnedActivation] = {}
        values = by_name(model.graph)
        self._add_activations(values, block)
        uses = Counter(name for s in plan.sites.values() for name in (s.weight, s.bias) if name)
        for site in block.sites:
            own = [name for name in (site.weight, site.bias) if name and uses[name] == 1]
            if site.weight in own:
                self._add_weight(site.weight or "", values)
            if site.weight in self.weights and site.bias in own and site.bias in values:
                self._add_bias(site, values)
        for modules in (self.weights, self.biases, self.activations):
            for key, module in enumerate(modules.values()):
                self.add_module(f"{type(module).__name__}{key}", module)

    def _add_activations(self, values: Mapping[str, ir.Value], block: Block) -> None:
        """Add a module for each per-tensor grid; grids that others read have a fixed step."""
        inside = values_between(values, block)
        shared = is_read_outside(values, block)
        rounded: dict[str, list[str]] = {}
        for name, grid in self._plan.grid_of.items():
            value = values.get(name)
            if value is None or is_constant(value):
                continue
            producer = value.producer()
            if producer is None or producer.name not in self._plan.data_movement_ops:
                rounded.setdefault(grid, []).append(name)
        for grid, names in rounded.items():
            params, within = self._plan.grids[grid], [name for name in names if name in inside]
            if not within or not isinstance(params, QuantParams):
                continue
            spec = params.spec
            if isinstance(params, Codebook) or not isinstance(spec.granularity, PerTensor):
                continue
            free = self._learned.steps and spec.bits < 8 and spec.scale_kind == "float"
            own = within == names and not (shared and block.entry in within)
            module = LearnedActivation(params, self._learned.drop, free and own)
            self.activations[grid] = module
            self._rounded |= dict.fromkeys(within, module)

    def _add_weight(self, name: str, values: Mapping[str, ir.Value]) -> None:
        """Add the weights of a site, where the grid has equal steps around 0."""
        params, weights = self._plan.params(name), constant(values[name])
        if params is None or weights is None or isinstance(params, Codebook):
            return
        spec = params.spec
        if isinstance(spec.granularity, PerBlock) or not spec.symmetric:
            return
        codes = torch.from_numpy(self._frozen.codes[name].astype(np.float32))
        exact = torch.from_numpy(weights.astype(np.float32)) / align(params, codes)[0]
        fine = self._learned.narrow_only and spec.bits >= 8
        module = self._learned.weight(codes if fine else exact, codes, params)
        module.v.requires_grad_(not fine)
        if name in self._plan.masks:
            mask = torch.from_numpy(self._plan.masks[name].astype(np.float32))
            module.mask = mask.to(codes.device)
        self.weights[name] = module
        if not self._learned.steps:
            module.log_gain.requires_grad_(False)

    def _add_bias(self, site: Site, values: Mapping[str, ir.Value]) -> None:
        name, weight = site.bias or "", self.weights[site.weight or ""]
        start, out = self._plan.weight(name, values[name]), self._plan.params(site.output)
        size = float(np.abs(start).max()) if out is None else float(out.hi - out.lo)
        read = self.activations.get(self._plan.grid_of[site.inputs[0]])
        fixed = torch.tensor(float(self._plan.qparams(site.inputs[0]).scale))

        def step() -> T:
            return weight.scale.reshape(-1) * (fixed if read is None else read.scale)

        self.biases[name] = LearnedBias(start, size, step, self._learned.steps)

    def forward(self, feeds: Mapping[str, Any]) -> T:
        """Return the block's output as it is before rounding.

        Args:
            feeds: the graph's inputs, and the entry of the block as it is before rounding.
        """
        run, raw = self._simulation.executor, self._simulation.raw
        return run(feeds, self._observe, [self._exit], raw)[self._exit]

    def _observe(self, value: ir.Value, tensor: T) -> T:
        name = value.name or ""
        if name == self._exit:
            return tensor
        constant_module = self.weights.get(name) or self.biases.get(name)
        if constant_module is not None:
            return cast(T, constant_module())
        if name in self._rounded:
            return cast(T, self._rounded[name](tensor))
        return self._simulation.observe(value, tensor)

    @property
    def drop(self) -> Drop:
        """The choice of activations that stay unrounded."""
        return self._learned.drop

    @property
    def learns(self) -> bool:
        """Return whether there is anything to learn."""
        return bool(self.roundings()) or bool(self.scales_and_biases())

    @property
    def is_finite(self) -> bool:
        """Return whether no parameter and no scale is NaN or infinite: learning may diverge."""
        scales = [weight.scale for weight in self.weights.values()]
        scales += [activation.scale for activation in self.activations.values()]
        return all(bool(torch.isfinite(part).all()) for part in (*self.parameters(), *scales))

    def roundings(self) -> list[LearnedWeight]:
        """Return the weights whose rounding learns."""
        return [weight for weight in self.weights.values() if weight.v.requires_grad]

    def scales_and_biases(self) -> list[nn.Parameter]:
        """Return all parameters that learn besides the rounding of weights."""
        parameters = [activation.log_ratio for activation in self.activations.values()]
        parameters += [weight.log_gain for weight in self.weights.values()]
        parameters += [bias.change for bias in self.biases.values()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def regularizer(self, beta: float) -> T:
        """Return the sum of the regularizers of all weights whose rounding learns."""
        terms = [weight.regularizer(beta) for weight in self.roundings()]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def changes(self) -> QuantPlan:
        """Return a plan of the parts that learned: grids, hard codes, float arrays."""
        grids: dict[str, QuantParams] = {}
        codes: dict[str, np.ndarray] = {}
        values: dict[str, np.ndarray] = {}
        for name, weight in self.weights.items():
            if not weight.v.requires_grad and not weight.log_gain.requires_grad:
                continue
            codes[name], params = weight.freeze()
            grids[self._plan.grid_of[name]] = params
            rounded = dequantize(codes[name].astype(np.float32), params)
            values[name] = np.asarray(rounded, np.float32)
        for name, bias in self.biases.items():
            if not bias.change.requires_grad:
                continue
            values[name] = bias.exact.detach().cpu().numpy()
        for grid, activation in self.activations.items():
            if activation.log_ratio.requires_grad:
                grids[grid] = activation.freeze()
        return QuantPlan(grids=grids, codes=codes, weight_overrides=values)
