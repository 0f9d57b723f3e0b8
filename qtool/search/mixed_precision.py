"""Choose the bits of each layer within a budget, from costs that were measured layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtool.search.integer_program import COST, Choice, Conversion, Program

FLOAT_BITS = 32


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
class Layer:
    """A layer with weights, and what each of its ways costs and uses.

    Attributes:
        name: of the node.
        parameters: number of weights.
        macs: of one sample.
        costs: way -> divergence from the float output with this layer alone on that way.
        bytes: way -> bytes in the file.
        milliseconds: way -> time of one sample; empty where no latency was measured.
    """

    name: str
    parameters: int
    macs: int
    costs: Mapping[Way, float]
    bytes: Mapping[Way, float]
    milliseconds: Mapping[Way, float]

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
