"""The widths a recipe asks for, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir


class Widths(NamedTuple):
    """Bits of a layer's weights and of the activations it reads; None means float.

    ``dynamic``: activations are floats to the plan, and get 8-bit grids inside the kernels that can
    find them while they run.
    """

    weights: int | None
    activations: int | None
    dynamic: bool = False


FLOAT = Widths(None, None)


@dataclass(frozen=True)
class Bits:
    """What the recipe asks for; None means float.

    Attributes:
        weights, activations, dynamic: as in Widths. Activations are the inputs of layers with
            weights; what lies between them (sums, pools) keeps at least the target's own width.
        granularity: ``tensor`` or ``channel`` for weights, or ``block`` (of ``block`` weights along
            the reduction) for weights of layers that compute in floats.
        scale: form of the scales in integer layers, a ``scale_kind``.
        layers: node name -> its own widths.
        code_outputs: the network's outputs are wanted as codes.
    """

    weights: int | None = 8
    activations: int | None = 8
    dynamic: bool = False
    granularity: str = "channel"
    block: int = 32
    scale: str = "float"
    layers: Mapping[str, Widths] = field(default_factory=dict)
    code_outputs: bool = False

    def of(self, node: ir.Node) -> Widths:
        """The widths asked for one node."""
        everywhere = Widths(self.weights, self.activations, self.dynamic)
        return self.layers.get(node.name or "", everywhere)

    def integer(self, node: ir.Node) -> bool:
        """True when the node may compute on codes."""
        return None not in self.of(node)
