"""The widths a recipe asks for, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir


class Widths(NamedTuple):
    """Bits of a layer's weights and of the activations it reads; None means float."""

    weights: int | None
    activations: int | None


FLOAT = Widths(None, None)


@dataclass(frozen=True)
class Bits:
    """What the recipe asks for; None means float.

    Attributes:
        weights, activations: bits, or None. Activations are the inputs of layers with weights;
            what lies between them (sums, pools) keeps at least the target's own width.
        granularity: ``tensor`` or ``channel`` for weights, or ``block`` (of ``block`` weights along
            the reduction) for weights of layers that compute in floats.
        layers: node name -> its own widths.
    """

    weights: int | None = 8
    activations: int | None = 8
    granularity: str = "channel"
    block: int = 32
    layers: Mapping[str, Widths] = field(default_factory=dict)

    def of(self, node: ir.Node) -> Widths:
        """The widths asked for one node."""
        return self.layers.get(node.name or "", Widths(self.weights, self.activations))

    def integer(self, node: ir.Node) -> bool:
        """True when the node may compute on codes."""
        return None not in self.of(node)
