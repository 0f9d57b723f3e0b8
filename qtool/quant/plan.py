"""The plan: the grid of every quantized value, and the codes of weights and biases.

Every step after the rewrites is a function ``plan -> plan``; ``dataclasses.replace`` makes the next
plan. Three words are used throughout qtool; papers and tools call them

* grid: quantization parameters, a scale s and a zero point z (``QuantParams``);
* codes: integer (quantized) values q, with real value x ~ s * (q - z);
* site: fused operator or supergroup, the nodes that a runtime fuses into one integer kernel.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import constant
from qtool.quant.primitives import QuantParams, QuantSpec, align, dequantize, fake_quantize


@dataclass(frozen=True)
class Site:
    """A group of nodes that the runtime fuses into one integer kernel: an op and its activation.

    The clipping of the activation (Relu, Clip) is part of the output grid.

    Attributes:
        name: name of the node that does the work.
        op: op type of that node.
        nodes: all fused nodes, first to last (Conv, Relu).
        inputs: activation values it reads as codes.
        weight: initializer of its weights, or None.
        bias: initializer of its bias, or None.
        output: output of the last node; on a grid when it is in ``grid_of``, else float.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    weight: str | None = None
    bias: str | None = None


@dataclass(frozen=True)
class DynamicSite:
    """A node with dynamic quantization: its kernel computes the grid of its input at run time.

    It multiplies codes by codes, but reads and writes floats: in the rest of the plan it is a float
    op with weight-only quantization.

    Attributes:
        name: name of the node.
        op: op type of the node.
        input: the float value that the kernel quantizes.
        outputs: float values, in the node's order; the first one of an LSTM is its output at every
            step, which has a name also where nothing reads it.
        weights: initializers it reads as codes.
    """

    name: str
    op: str
    input: str
    outputs: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes in the emitted file that read its codes, scales and bias."""
        return (self.name, f"{self.name}/factor", f"{self.name}/bias")


@dataclass(frozen=True)
class QuantPlan:
    """All quantization decisions about one model.

    Attributes:
        sites: node name -> Site, in graph order; all other nodes compute in float.
        data_movement_ops: nodes that only move codes (Reshape, MaxPool ...): input and output
            share a grid.
        grid_of: value name -> grid id; activations, weights and biases alike.
        grids: grid id -> QuantSpec, replaced by QuantParams once its scale is computed.
        codes: initializer name -> final integers.
        weight_overrides: initializer name -> float array that replaces the model's own.
        masks: initializer name -> boolean array of the weight's shape, False where a weight was
            pruned: it is 0 in the float array, and its code is the zero point.
        weight_only: initializers that float ops read; stored as codes, dequantized at load.
        dynamic: node name -> DynamicSite, in graph order.
        float_nodes: node name -> the reason why it computes in float.
        log: one line per finished step.
    """

    sites: Mapping[str, Site] = field(default_factory=dict)
    data_movement_ops: frozenset[str] = frozenset()
    grid_of: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, QuantSpec | QuantParams] = field(default_factory=dict)
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight_overrides: Mapping[str, np.ndarray] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight_only: frozenset[str] = frozenset()
    dynamic: Mapping[str, DynamicSite] = field(default_factory=dict)
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()

    def with_float_weights(self) -> "QuantPlan":
        """Return the plan in which activations alone are rounded: weights and biases are floats."""
        names = self.weight_only.union(self.weight_uses())
        weights = {self.grid_of[name] for name in names if name in self.grid_of}
        grids = {grid: params for grid, params in self.grids.items() if grid not in weights}
        codes = {name: codes for name, codes in self.codes.items() if name not in names}
        return replace(self, grids=grids, codes=codes)

    def params(self, value: str) -> QuantParams | None:
        """Return the grid of a value; None when the value is float or has only a QuantSpec."""
        grid = self.grids.get(self.grid_of.get(value, ""))
        return grid if isinstance(grid, QuantParams) else None

    def qparams(self, value: str) -> QuantParams:
        """Return the grid of a value that must have one.

        Raises:
            AssertionError: the value is float, or its scale is not computed yet.
        """
        params = self.params(value)
        if params is None:
            raise AssertionError(f"{value} has no grid")
        return params

    def spec(self, value: str) -> QuantSpec | None:
        """Return the QuantSpec of a value, or None when the value is float."""
        grid = self.grids.get(self.grid_of.get(value, ""))
        return grid.spec if isinstance(grid, QuantParams) else grid

    def weight(self, name: str, initializer: ir.Value) -> np.ndarray:
        """Return the float array of an initializer: the override of a step, or the model's own.

        Args:
            name: name of the initializer in this plan.
            initializer: the model's value of that name.

        Raises:
            AssertionError: there is no override, and the value is no initializer.
        """
        array = self.weight_overrides.get(name)
        if array is None:
            array = constant(initializer)
        if array is None:
            raise AssertionError(f"{name} has no data")
        return array

    def rounded_weight(self, name: str, initializer: ir.Value) -> np.ndarray:
        """Return a weight as the file holds it, float32: its codes, else its array on its grid.

        Args:
            name: name of the initializer in this plan, which has a grid.
            initializer: the model's value of that name.

        Raises:
            AssertionError: the weight has no grid, or neither codes nor data.
        """
        params, codes = self.qparams(name), self.codes.get(name)
        if codes is None:
            return np.asarray(fake_quantize(self.weight(name, initializer), params), np.float32)
        return np.asarray(dequantize(codes.astype(np.float32), params), np.float32)

    def with_bias_shift(self, name: str, initializer: ir.Value, shift: np.ndarray) -> "QuantPlan":
        """Return the plan with a shift added to the float array of a bias.

        Args:
            name: name of the bias in this plan.
            initializer: the model's value of that name.
            shift: float64, one number for each output channel.

        Raises:
            AssertionError: the bias has no data.
        """
        bias = self.weight(name, initializer)
        new = bias.astype(np.float64) + shift.reshape(bias.shape)
        overrides = {**self.weight_overrides, name: new.astype(np.float32)}
        return replace(self, weight_overrides=overrides)

    def with_changes(self, changes: "QuantPlan") -> "QuantPlan":
        """Return the plan with the grids, codes and float arrays of ``changes``.

        Args:
            changes: holds the changed ones alone.
        """
        return replace(
            self,
            grids={**self.grids, **changes.grids},
            codes={**self.codes, **changes.codes},
            weight_overrides={**self.weight_overrides, **changes.weight_overrides},
        )

    def changes_since(self, before: "QuantPlan") -> "QuantPlan":
        """Return the grids, codes and float arrays that are not the very objects of ``before``.

        Args:
            before: the plan that this one was made from, without removing anything.
        """
        return QuantPlan(
            grids=_replaced(self.grids, before.grids),
            codes=_replaced(self.codes, before.codes),
            weight_overrides=_replaced(self.weight_overrides, before.weight_overrides),
        )

    def masked(self) -> "QuantPlan":
        """Return the plan with 0 in place of every pruned weight, in codes and float arrays."""
        if not self.masks:
            return self
        codes, overrides = dict(self.codes), dict(self.weight_overrides)
        for name, mask in self.masks.items():
            if name in codes:
                zero = align(self.qparams(name), codes[name])[1]
                codes[name] = np.where(mask, codes[name], zero).astype(codes[name].dtype)
            if name in overrides:
                overrides[name] = np.where(mask, overrides[name], 0).astype(overrides[name].dtype)
        return replace(self, codes=codes, weight_overrides=overrides)

    @property
    def integer_nodes(self) -> frozenset[str]:
        """Names of all nodes that compute on codes."""
        return self.data_movement_ops.union(*(site.nodes for site in self.sites.values()))

    def weight_uses(self) -> Counter[str]:
        """Count the sites that read each weight and each bias."""
        pairs = ((site.weight, site.bias) for site in self.sites.values())
        return Counter(name for pair in pairs for name in pair if name)

    def members(self) -> dict[str, list[str]]:
        """Map grid id -> names of the values on that grid."""
        members: dict[str, list[str]] = {}
        for value, grid in self.grid_of.items():
            members.setdefault(grid, []).append(value)
        return members

    def note(self, line: str) -> "QuantPlan":
        """Return the plan with one more line in its log."""
        return replace(self, log=(*self.log, line))


T = TypeVar("T")


def _replaced(new: Mapping[str, T], old: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in new.items() if old.get(name) is not value}


def same_structure(a: QuantPlan, b: QuantPlan) -> bool:
    """Return True when two plans have the same sites and the same QuantSpec for every value.

    Scales and codes are not compared, and neither is ``narrow``, which training changes for
    weights.
    """

    def specs(plan: QuantPlan) -> dict[str, QuantSpec | None]:
        pairs = ((value, plan.spec(value)) for value in plan.grid_of)
        return {v: s if s is None else replace(s, narrow=True) for v, s in pairs}

    return (
        dict(a.grid_of) == dict(b.grid_of)
        and dict(a.sites) == dict(b.sites)
        and (a.data_movement_ops, a.weight_only) == (b.data_movement_ops, b.weight_only)
        and dict(a.dynamic) == dict(b.dynamic)
        and specs(a) == specs(b)
    )
