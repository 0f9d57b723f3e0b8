"""Hold activations of the quantized network as codes of one byte, a quarter of their floats."""

from collections.abc import Collection, Mapping

import torch

from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams
from qtool.simulation.one_scale import codes_of, has_one_scale, values_of
from qtool.steps.value_store import Values


class ByteCodes:
    """Converts values between floats on a grid and codes, without loss.

    A value has codes where its grid has at most 8 bits and one scale, and no reader needs it as it
    was before rounding.
    """

    def __init__(self, unrounded: Collection[str]) -> None:
        """Remember which values stay as they are.

        Args:
            unrounded: names of values that some reader reads before rounding.
        """
        self._unrounded = unrounded
        self._grids: dict[str, QuantParams] = {}

    def encode(self, plan: QuantPlan, values: Mapping[str, torch.Tensor]) -> Values:
        """Return values with codes in the place of those that have them.

        Args:
            plan: holds the grids; a value is decoded by the grid it was encoded by.
            values: floats by name.
        """
        encoded = {}
        for name, tensor in values.items():
            params = None if name in self._unrounded else plan.params(name)
            if params is None or not has_byte_codes(params, tensor):
                self._grids.pop(name, None)
                encoded[name] = tensor
                continue
            self._grids[name] = params
            container = torch.uint8 if params.spec.qmin >= 0 else torch.int8
            encoded[name] = codes_of(tensor, params, torch.empty_like(tensor)).to(container)
        return encoded

    def decode(self, values: Mapping[str, torch.Tensor]) -> Values:
        """Return values as floats; those without codes as they are."""
        return {
            name: values_of(tensor.float(), self._grids[name]) if name in self._grids else tensor
            for name, tensor in values.items()
        }

    def are_rounded(self, plan: QuantPlan, name: str) -> bool:
        """Return whether decoded values are already on the grid that a plan has for them."""
        return name in self._grids and self._grids[name] is plan.params(name)


def has_byte_codes(params: QuantParams, tensor: torch.Tensor) -> bool:
    """Return whether a float activation on this grid can be stored as codes of one byte."""
    return has_one_scale(params, tensor) and params.spec.bits <= 8 and tensor.dim() > 0
