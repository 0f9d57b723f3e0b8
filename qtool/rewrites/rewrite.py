"""The signature that every graph rewrite has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from qtool.quant.bit_widths import Widths

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


@dataclass(frozen=True)
class Samples:
    """Values of the float network on calibration samples, and the requested widths.

    Attributes:
        observe: (names, holdout) -> batches of values by name; ``holdout`` chooses the samples
            that decide, disjoint from those that are fitted to.
        widths: of a layer's weights and inputs.
    """

    observe: Callable[[Sequence[str], bool], Iterator[Mapping[str, np.ndarray]]]
    widths: Callable[[ir.Node], Widths]


class SampleRewrite(Protocol):
    """A change of a graph that reads calibration samples or widths.

    It keeps the graph's float function, but for ``bireal_shortcuts``.
    """

    def __call__(self, model: ir.Model, is_integer: IsInteger, samples: Samples) -> int:
        """Apply the rewrite wherever its pattern occurs.

        Args:
            model: as for :class:`Rewrite`.
            is_integer: as for :class:`Rewrite`.
            samples: values of the float network on calibration samples.

        Returns:
            The number of places that were changed.
        """
        ...
