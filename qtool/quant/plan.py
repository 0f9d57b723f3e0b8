"""The plan: which value lives on which grid, and the integers. The one thing that changes.

Every step after the rewrites is ``plan -> plan``; ``dataclasses.replace`` makes the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from qtool.quant.primitives import QuantParams, QuantSpec


@dataclass(frozen=True)
class Site:
    """What the runtime fuses into one integer kernel: an op, its activation folded into its grid.

    Attributes:
        name: name of the node that does the work.
        op: its op type.
        nodes: all fused nodes, first to last (Conv, Relu).
        inputs: activation values it reads on their grids.
        weight: initializer holding its weights, or None.
        bias: initializer holding its bias, or None.
        output: the last node's value; on a grid when it is in ``grid_of``, else float.
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
    """A node that multiplies codes of its weights by codes of an input it rounds itself.

    Its kernel finds the grid of the input while it runs, and reads and writes floats: to the rest
    of the plan it is a float op with stored weights.

    Attributes:
        name: of the node.
        op: its op type.
        input: the float value it rounds.
        outputs: float values, in the node's order; of an LSTM the first is what it writes at every
            step, named also where nothing reads it.
        weights: initializers it reads as codes.
    """

    name: str
    op: str
    input: str
    outputs: tuple[str, ...]
    weights: tuple[str, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes in the file that read its codes, scales and bias."""
        return (self.name, f"{self.name}/factor", f"{self.name}/bias")


@dataclass(frozen=True)
class QuantPlan:
    """All decisions about one model.

    Attributes:
        sites: node name -> Site, in graph order; everything else computes in float.
        data_movement_ops: nodes that only move codes (Reshape, MaxPool ...): input and output
            share a grid.
        grid_of: value name -> grid id; activations, weights and biases alike.
        grids: grid id -> what is asked for (QuantSpec), later what was found (QuantParams).
        codes: initializer name -> final integers.
        weight_overrides: initializer name -> float array that replaces the model's own.
        weight_only: initializers that float ops read, kept as codes and widened once at load.
        dynamic: node name -> DynamicSite, in graph order.
        float_nodes: node name -> why it stays in float.
        log: one line per finished step.
    """

    sites: Mapping[str, Site] = field(default_factory=dict)
    data_movement_ops: frozenset[str] = frozenset()
    grid_of: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, QuantSpec | QuantParams] = field(default_factory=dict)
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight_overrides: Mapping[str, np.ndarray] = field(default_factory=dict)
    weight_only: frozenset[str] = frozenset()
    dynamic: Mapping[str, DynamicSite] = field(default_factory=dict)
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()

    def params(self, value: str) -> QuantParams | None:
        """The found grid of a value, or None when the value is float."""
        grid = self.grids.get(self.grid_of.get(value, ""))
        return grid if isinstance(grid, QuantParams) else None

    def spec(self, value: str) -> QuantSpec | None:
        """The asked-for grid of a value, or None when the value is float."""
        grid = self.grids.get(self.grid_of.get(value, ""))
        return grid.spec if isinstance(grid, QuantParams) else grid

    @property
    def integer_nodes(self) -> frozenset[str]:
        """Names of all nodes that compute on codes."""
        return self.data_movement_ops.union(*(site.nodes for site in self.sites.values()))

    def members(self) -> dict[str, list[str]]:
        """Grid id -> the values on it."""
        found: dict[str, list[str]] = {}
        for value, grid in self.grid_of.items():
            found.setdefault(grid, []).append(value)
        return found

    def note(self, line: str) -> "QuantPlan":
        """The same plan with one more line in its log."""
        return replace(self, log=(*self.log, line))


def same_shape(a: QuantPlan, b: QuantPlan) -> bool:
    """True when two plans put the same values on grids of the same specs, found or not.

    Whether a grid is narrow does not count: training widens those of weights.
    """

    def specs(plan: QuantPlan) -> dict[str, QuantSpec | None]:
        found = {value: plan.spec(value) for value in plan.grid_of}
        return {v: s if s is None else replace(s, narrow=True) for v, s in found.items()}

    return (
        dict(a.grid_of) == dict(b.grid_of)
        and dict(a.sites) == dict(b.sites)
        and (a.data_movement_ops, a.weight_only) == (b.data_movement_ops, b.weight_only)
        and dict(a.dynamic) == dict(b.dynamic)
        and specs(a) == specs(b)
    )
