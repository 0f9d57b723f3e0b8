"""Choose the bits of each layer within a budget, from costs that were measured layer by layer."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic.dataclasses import dataclass as entry

from qtool.progress import Progress, silent
from qtool.search.integer_program import COST, Choice, Conversion, Program

FLOAT_BITS = 32
# The costs of single layers add up badly where one of them is large; their roots weigh it less.
POWERS = (1.0, 0.5)


@dataclass(frozen=True)
class Way:
    """One way to compute a layer.

    Attributes:
        weights, activations: bits; None: float.
    """

    weights: int | None
    activations: int | None

    @property
    def is_float(self) -> bool:
        """True where the layer computes in floats."""
        return self.weights is None

    def __str__(self) -> str:
        return "float" if self.is_float else f"{self.weights}/{self.activations}"


@dataclass(frozen=True)
class Geometry:
    """The form of a layer: a part of the state of methods that learn.

    Attributes:
        inputs, outputs: channels.
        kernel, stride: of a convolution; 1 and 0 of a matrix product.
        size: values of one sample of the input, channels left out.
        depthwise: True where every channel has a kernel of its own.
    """

    inputs: int = 1
    outputs: int = 1
    kernel: int = 1
    stride: int = 0
    size: int = 1
    depthwise: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer with weights, and what each of its ways costs and uses.

    Attributes:
        name: of the node.
        parameters: number of weights.
        macs: of one sample.
        costs: way -> divergence from the float output with this layer alone on that way.
        bytes: way -> bytes in the file.
        milliseconds: way -> time of one sample; empty where no latency was measured.
        geometry: its form.
    """

    name: str
    parameters: int
    macs: int
    costs: Mapping[Way, float]
    bytes: Mapping[Way, float]
    milliseconds: Mapping[Way, float]
    geometry: Geometry = Geometry()

    def state(self, index: int) -> tuple[float, ...]:
        """Return what methods that learn read of the layer.

        Args:
            index: of the layer.
        """
        form = self.geometry
        channels = (form.inputs, form.outputs, form.kernel, form.stride, form.size)
        return tuple(map(float, (index, *channels, self.parameters, form.depthwise)))

    def choice(self, way: Way) -> Choice:
        """Return the amounts of one way."""
        weights, activations = way.weights or FLOAT_BITS, way.activations or FLOAT_BITS
        amounts = {
            COST: self.costs[way],
            "bits": float(self.parameters * weights),
            "bops": float(self.macs * weights * activations),
            "bytes": self.bytes[way],
            "latency": self.milliseconds.get(way, 0.0),
        }
        return Choice(amounts, way.is_float)


def program_of(
    layers: Sequence[Layer],
    ways: Mapping[str, Sequence[Way]],
    conversions: Sequence[Conversion] = (),
) -> Program:
    """Return the integer program of some layers.

    Args:
        layers: all layers with weights, in graph order.
        ways: layer -> the ways it may take, as least as many bits last.
        conversions: between layers, by position.
    """
    sites = [[layer.choice(way) for way in ways[layer.name]] for layer in layers]
    return Program(sites, conversions)


Solver = Callable[[Mapping[str, float]], tuple[int, ...] | None]
"""Limits by name of an amount -> the way of each layer; None where none was found."""


@dataclass(frozen=True)
class Problem:
    """The choice of one way for each layer.

    Attributes:
        program: the ways with what they cost alone, and use.
        states: numbers that describe each layer, see :meth:`Layer.state`.
        loss: quantizes the network so, and returns how far it is from the float one.
        seed: of random choices.
        progress: of methods that try many networks.
        neighbors: positions of the ways of each layer that are at most one step from the widest
            uniform width within the limits; None: no uniform width is.
    """

    program: Program
    states: Sequence[Sequence[float]]
    loss: Callable[[Sequence[int]], float]
    seed: int = 0
    progress: Progress = silent
    neighbors: Sequence[Sequence[int]] | None = None


class BudgetMethod(Protocol):
    """A way to choose widths within limits.

    Attributes:
        minimizes_size: whether it can look for the smallest file that keeps an accuracy.
        summary: how it chooses, for the report.
    """

    minimizes_size: ClassVar[bool]
    summary: ClassVar[str]

    def solvers(self, problem: Problem) -> Sequence[Solver]:
        """Return functions whose solutions are compared as whole networks.

        Args:
            problem: the layers and their ways.
        """


@entry(frozen=True)
class IntegerProgram:
    """Add up what each layer costs alone, and solve exactly for the least sum within the limits.

    Three solutions are compared as whole networks: that of the costs, that of their roots, and one
    of widths next to the uniform one, whose file has fewer ways to unpack weights::

        minimize sum_i x_ib cost_ib   subject to   sum_b x_ib = 1,  sum_i x_ib use_ib <= limit

    Source: Yao et al. 2021, HAWQ-V3, sec. 3.4, arXiv:2011.10680.
    Departure: the cost is the noise at the output with one layer quantized and repaired.
    """

    minimizes_size: ClassVar[bool] = True
    summary: ClassVar[str] = (
        "layers were scored alone at each width, by the noise at the output after a repair of "
        "their own"
    )

    def solvers(self, problem: Problem) -> Sequence[Solver]:
        """Return the program's solver with the costs, with their roots, and near uniform widths.

        Args:
            problem: the layers and their ways.
        """
        solvers: list[Solver] = [problem.program.rooted(power).solve for power in POWERS]
        if problem.neighbors is not None:
            solvers.append(functools.partial(problem.program.solve, among=problem.neighbors))
        return solvers


def monotonic(costs: Mapping[Way, float]) -> dict[Way, float]:
    """Return costs in which more bits never cost more: noise of few samples is taken out.

        cost'(w, a) = max over w' >= w, a' >= a of cost(w', a')

    Args:
        costs: way -> measured cost.
    """

    def covers(wide: Way, way: Way) -> bool:
        pairs = ((wide.weights, way.weights), (wide.activations, way.activations))
        return all((a or FLOAT_BITS) >= (b or FLOAT_BITS) for a, b in pairs)

    return {way: max(c for other, c in costs.items() if covers(other, way)) for way in costs}


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Return the positions of the points that no other one beats in all coordinates.

    Args:
        points: smaller is better in each coordinate; equal points count once.
    """

    def beaten(k: int) -> bool:
        return any(
            all(a <= b for a, b in zip(other, points[k], strict=True))
            and (other != points[k] or j < k)
            for j, other in enumerate(points)
            if j != k
        )

    return [k for k in range(len(points)) if not beaten(k)]
