"""The interface of weight schemes."""

from typing import ClassVar, Protocol

import numpy as np

from qtool.quant.primitives import QuantParams, QuantSpec


class WeightScheme(Protocol):
    """Compute the grid and the codes of one weight; the type of the entries of SCHEMES.

    A call is a pure function of its arguments.
    """

    fixed_bits: ClassVar[int | None]
    """Bits of a scheme with a fixed number of values; None where the spec's bits set it."""
    low_bit_only: ClassVar[bool]
    """True where only layers of less than 8 bits use the scheme."""

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[QuantParams, np.ndarray | None]:
        """Return the grid and the codes.

        Args:
            weight: float, any shape, finite.
            spec: the requested bits and granularity.
            level_bits: 8 or 16, width of the integers that a learned code book may use; schemes
                with equal steps or fixed levels ignore it.

        Returns:
            The grid, and codes in the shape of the weights; None for codes where ``freeze`` shall
            round every weight to the nearest one.

        Raises:
            ValueError: there is no grid for these weights.
        """
