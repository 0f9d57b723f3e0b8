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
        passes: nodes that only move codes (Reshape, MaxPool ...): input and output share a grid.
        grid_of: value name -> grid id; activations, weights and biases alike.
        grids: grid id -> what is asked for (QuantSpec), later what was found (QuantParams).
        codes: initializer name -> final integers.
        values: initializer name -> float array that replaces the model's own.
        stored: initializers that float ops read, kept as codes and widened once at load.
        dynamic: node name -> DynamicSite, in graph order.
        floats: node name -> why it stays in float.
        log: one line per finished step.
    """

    sites: Mapping[str, Site] = field(default_factory=dict)
    passes: frozenset[str] = frozenset()
    grid_of: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, QuantSpec | QuantParams] = field(default_factory=dict)
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    dynamic: Mapping[str, DynamicSite] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
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
        return self.passes.union(*(site.nodes for site in self.sites.values()))

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
        and (a.passes, a.stored) == (b.passes, b.stored)
        and dict(a.dynamic) == dict(b.dynamic)
        and specs(a) == specs(b)
    )


BINS = 4096


@dataclass(frozen=True, eq=False)
class Stats:
    """What calibration saw of one value; ``a + b`` is what it would have seen of both.

    The histogram's bins are ``[k * 2**exponent, (k + 1) * 2**exponent)`` for ``k`` from ``first``:
    two histograms merge exactly by coarsening the finer one, in any order, so statistics can be
    gathered in one pass, in parallel, without knowing the range beforehand.

    Attributes:
        lo, hi: smallest and largest value of all elements, float.
        total, square: sum of elements and of squares, over ``count`` elements.
        histogram: int64 [at most BINS], counts of a subset of the elements.
    """

    lo: float = np.inf
    hi: float = -np.inf
    total: float = 0.0
    square: float = 0.0
    count: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    first: int = 0
    exponent: int = -1000

    @property
    def mean(self) -> float:
        """Mean of the elements seen."""
        return self.total / max(self.count, 1)

    @property
    def var(self) -> float:
        """Variance of the elements seen."""
        return max(self.square / max(self.count, 1) - self.mean**2, 0.0)

    @property
    def edges(self) -> np.ndarray:
        """Bin edges, float64 [bins + 1]."""
        return np.ldexp(
            np.arange(self.first, self.first + len(self.histogram) + 1.0), self.exponent
        )

    def coarsened(self, exponent: int) -> "Stats":
        """The same statistics with bins ``2**exponent`` wide."""
        if exponent == self.exponent or not len(self.histogram):
            return replace(self, exponent=max(exponent, self.exponent))
        shift = exponent - self.exponent
        index = (np.arange(len(self.histogram)) + self.first) >> shift
        histogram = np.bincount(index - index[0], weights=self.histogram).astype(np.int64)
        return replace(self, histogram=histogram, first=int(index[0]), exponent=exponent)

    def __add__(self, other: "Stats") -> "Stats":
        exponent = max(self.exponent, other.exponent)
        while True:
            a, b = self.coarsened(exponent), other.coarsened(exponent)
            parts = [s for s in (a, b) if len(s.histogram)]
            first = min((s.first for s in parts), default=0)
            end = max((s.first + len(s.histogram) for s in parts), default=0)
            if end - first <= BINS:
                break
            exponent += 1
        histogram = np.zeros(end - first, np.int64)
        for s in parts:
            histogram[s.first - first : s.first - first + len(s.histogram)] += s.histogram
        return Stats(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            self.total + other.total,
            self.square + other.square,
            self.count + other.count,
            histogram,
            first,
            exponent,
        )
