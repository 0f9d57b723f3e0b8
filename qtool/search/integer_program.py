"""Choose one width for each site under limits: an integer linear program.

    minimize   sum_i sum_b x_ib cost_ib
    subject to sum_b x_ib = 1,   sum_i sum_b x_ib use_ib + sum_e conversions_e <= limit,
               sum_i sum_(b integer) x_ib >= 1   (a network of floats alone is not quantized)

Source: Yao et al. 2021, HAWQ-V3, sec. 3.4, arXiv:2011.10680; solved exactly by HiGHS (scipy).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qtool.native_output import discard_native_stdout

COST = "cost"


@dataclass(frozen=True)
class Choice:
    """One way to compute a site.

    Attributes:
        amounts: what it costs and uses by name: ``cost``, bytes, milliseconds ...
        is_float: whether it computes in floats.
    """

    amounts: Mapping[str, float]
    is_float: bool = False


@dataclass(frozen=True)
class Conversion:
    """Amounts of converting a value between two sites of which one computes in floats.

    Attributes:
        source: position of the site that makes the value.
        reader: position of a site that reads it.
        to_codes: amounts where the source is float and the reader integer.
        to_floats: amounts where the source is integer and the reader float.
    """

    source: int
    reader: int
    to_codes: Mapping[str, float] = field(default_factory=dict)
    to_floats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """The choices of all sites.

    Attributes:
        sites: the choices of each site; each has one at least.
        conversions: between sites.
    """

    sites: Sequence[Sequence[Choice]]
    conversions: Sequence[Conversion] = ()

    def amount(self, chosen: Sequence[int], name: str) -> float:
        """Return the sum of an amount over the chosen ways.

        Args:
            chosen: position of the choice of each site.
            name: of the amount.
        """
        ways = [choices[k] for choices, k in zip(self.sites, chosen, strict=True)]
        total = sum(way.amounts.get(name, 0.0) for way in ways)
        for edge in self.conversions:
            source, reader = ways[edge.source].is_float, ways[edge.reader].is_float
            if source and not reader:
                total += edge.to_codes.get(name, 0.0)
            if reader and not source:
                total += edge.to_floats.get(name, 0.0)
        return total

    def allows(self, chosen: Sequence[int], limits: Mapping[str, float]) -> bool:
        """Return whether a choice is within limits and computes one site at least in integers.

        Args:
            chosen: position of the choice of each site.
            limits: name of an amount -> its largest sum.
        """
        in_floats = (choices[k].is_float for choices, k in zip(self.sites, chosen, strict=True))
        within = (self.amount(chosen, name) <= limit for name, limit in limits.items())
        return not all(in_floats) and all(within)

    def rooted(self, power: float) -> "Program":
        """Return the program with costs raised to a power.

        Args:
            power: below 1, large costs weigh less.
        """
        sites = [
            [
                Choice({**way.amounts, COST: way.amounts[COST] ** power}, way.is_float)
                for way in ways
            ]
            for ways in self.sites
        ]
        return Program(sites, self.conversions)

    def solve(
        self,
        limits: Mapping[str, float],
        objective: str = COST,
        among: Sequence[Collection[int]] | None = None,
    ) -> tuple[int, ...] | None:
        """Return the choice of each site with the least objective; None where none is allowed.

        See :meth:`allows`.

        Args:
            limits: name of an amount -> its largest sum.
            objective: name of the amount to minimize.
            among: positions of the choices that each site may take; None: all.
        """
        columns = [(i, way) for i, choices in enumerate(self.sites) for way in choices]
        costs = _scaled(self._row(objective, columns))[0]
        largest = np.ones(len(costs))
        if among is not None:
            free = [
                k in own for c, own in zip(self.sites, among, strict=True) for k in range(len(c))
            ]
            largest[: len(columns)] = free
        with discard_native_stdout():
            result = milp(
                costs,
                constraints=self._constraints(columns, limits),
                integrality=np.ones(len(costs)),
                bounds=Bounds(0, largest),
                options={"mip_rel_gap": 0.0},
            )
        if result.x is None:
            return None
        picked = [k for k in range(len(columns)) if result.x[k] > 0.5]
        starts = np.cumsum([0, *(len(choices) for choices in self.sites)])
        return tuple(k - int(starts[columns[k][0]]) for k in picked)

    def _constraints(
        self, columns: Sequence[tuple[int, Choice]], limits: Mapping[str, float]
    ) -> list[LinearConstraint]:
        """Return: one choice for each site, one in integers, conversions, limits."""
        size = len(columns) + 2 * len(self.conversions)
        one, integer = np.zeros((len(self.sites), size)), np.zeros((1, size))
        for k, (i, way) in enumerate(columns):
            one[i, k], integer[0, k] = 1, not way.is_float
        constraints = [LinearConstraint(one, 1, 1), LinearConstraint(integer, 1, np.inf)]
        if self.conversions:
            constraints.append(LinearConstraint(self._links(columns), 0, np.inf))
        for name, limit in limits.items():
            row, scale = _scaled(self._row(name, columns))
            constraints.append(LinearConstraint(row[None], -np.inf, limit / scale))
        return constraints

    def _row(self, name: str, columns: Sequence[tuple[int, Choice]]) -> np.ndarray:
        amounts = [way.amounts.get(name, 0.0) for _, way in columns]
        for edge in self.conversions:
            amounts += [edge.to_codes.get(name, 0.0), edge.to_floats.get(name, 0.0)]
        return np.array(amounts)

    def _links(self, columns: Sequence[tuple[int, Choice]]) -> np.ndarray:
        """Return rows z - f_source + f_reader >= 0 and z' + f_source - f_reader >= 0."""
        rows = np.zeros((2 * len(self.conversions), len(columns) + 2 * len(self.conversions)))
        for e, edge in enumerate(self.conversions):
            for k, (i, way) in enumerate(columns):
                sign = float(way.is_float) * (float(i == edge.reader) - float(i == edge.source))
                rows[2 * e, k], rows[2 * e + 1, k] = sign, -sign
            rows[2 * e, len(columns) + 2 * e] = 1
            rows[2 * e + 1, len(columns) + 2 * e + 1] = 1
        return rows


def _scaled(row: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a row over its largest magnitude, and that: tolerances of the solver are absolute."""
    scale = float(np.abs(row).max()) or 1.0
    return row / scale, scale
