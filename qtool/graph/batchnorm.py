"""A BatchNorm before it was folded, stored in its layer's ``meta["folded_norm"]``."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import attribute, constant


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A BatchNorm as it was before it was folded into the layer in front; all float64 [C].

    Attributes:
        gamma, beta, mean, var: inputs 1 to 4 of the BatchNormalization node.
        epsilon: added to ``var``.
        bias: bias of the layer before folding, zeros where it had none.
    """

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    epsilon: float
    bias: np.ndarray

    @classmethod
    def of(cls, norm: ir.Node, layer: ir.Node | None) -> "FoldedNorm | None":
        """Record a BatchNorm that is about to be folded; None where it cannot be folded.

        Args:
            norm: a BatchNormalization node with constant inputs 1 to 4.
            layer: the node in front that it is folded into; None where there is none.
        """
        gamma, beta, mean, var = (np.asarray(constant(v), np.float64) for v in norm.inputs[1:5])
        bias = constant(layer.inputs[2]) if layer is not None and len(layer.inputs) > 2 else None
        vector = np.zeros(1) if bias is None else np.asarray(bias, np.float64).reshape(-1)
        if vector.size not in (1, gamma.size):
            return None  # a bias per row of a Gemm, which folding refuses too
        epsilon = float(attribute(norm, "epsilon", 1e-5))
        return cls(gamma, beta, mean, var, epsilon, np.broadcast_to(vector, gamma.shape))
