"""Requested bit widths, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from qtool.graph.queries import name_of


class Widths(NamedTuple):
    """Bits of a layer's weights and of the activations it reads; None means float.

    ``dynamic``: activations are floats in the plan, and kernels that support it quantize them to 8
    bits at run time.
    """

    weights: int | None
    activations: int | None
    dynamic: bool = False


FLOAT = Widths(None, None)


@dataclass(frozen=True)
class Bits:
    """The bit widths of a recipe; None means float.

    Attributes:
        weights, activations, dynamic: as in Widths, for nodes not in ``layers``. Activations are
            the inputs of layers with weights; other ops (sums, pools) have at least the bits of
            the target's activations.
        granularity: ``tensor`` or ``channel`` for weights, or ``block`` (of ``block`` weights along
            the reduction) for weights of layers that compute in floats.
        block: weights per block, used with granularity ``block``.
        scale: form of the scales in integer layers, a ``scale_kind``.
        layers: node name -> widths of that node.
        code_outputs: True when the network's outputs shall be codes.
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
        """Return the widths requested for a node."""
        default = Widths(self.weights, self.activations, self.dynamic)
        return self.layers.get(name_of(node), default)

    def integer(self, node: ir.Node) -> bool:
        """Return True when the node may compute on codes."""
        return None not in self.of(node)
