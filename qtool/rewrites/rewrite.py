"""The signature that every graph rewrite has."""

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

IsInteger = Callable[[ir.Node], bool]


class Rewrite(Protocol):
    """A change of a graph that keeps the graph's float function.

    A rewrite replaces a pattern only where the replacement is exact up to float32 rounding; every
    other occurrence stays as it is.
    """

    def __call__(self, model: ir.Model, is_integer: IsInteger) -> int:
        """Apply the rewrite wherever its pattern occurs.

        Args:
            model: changed in place; its inputs and outputs keep their names, types and shapes.
            is_integer: returns whether the bit widths let a node compute on integers. Rewrites that
                only help integer kernels skip the other nodes.

        Returns:
            The number of places that were changed.
        """
        ...
