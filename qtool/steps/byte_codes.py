"""Hold activations of the quantized network as codes of one byte, a quarter of their floats."""

from collections.abc import Collection, Mapping

import torch

from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import Codebook, PerTensor, QuantParams
from qtool.steps.value_store import Values

# Samples of fewer elements are rounded together: the calls cost more than the cache misses.
SMALL = 1 << 15


class ByteCodes:
    """Converts values between floats on a grid and codes, without loss.

    A value has codes where its grid has at most 8 bits and one scale, and no reader needs it as it
    was before rounding. The operations are those of :func:`qtool.quant.primitives.fake_quantize` in
    their order, so values are equal to the last bit.
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
            encoded[name] = _codes(tensor, params, torch.empty_like(tensor)).to(container)
        return encoded

    def decode(self, values: Mapping[str, torch.Tensor]) -> Values:
        """Return values as floats; those without codes as they are."""
        return {
            name: _values(tensor.float(), self._grids[name]) if name in self._grids else tensor
            for name, tensor in values.items()
        }

    def are_rounded(self, plan: QuantPlan, name: str) -> bool:
        """Return whether decoded values are already on the grid that a plan has for them."""
        return name in self._grids and self._grids[name] is plan.params(name)


def has_byte_codes(params: QuantParams, tensor: torch.Tensor) -> bool:
    """Return whether a float activation on this grid can be stored as codes of one byte."""
    spec = params.spec
    plain = isinstance(spec.granularity, PerTensor) and not isinstance(params, Codebook)
    return plain and spec.bits <= 8 and tensor.dtype == torch.float32 and tensor.dim() > 0


def rounded(tensor: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """Return an activation on a grid with one scale, without the copies of ``fake_quantize``.

    Sample by sample in place: a sample stays in the cache, which is four times faster.
    """
    result = torch.empty_like(tensor)
    together = tensor.dim() < 2 or tensor[:1].numel() < SMALL
    pairs = ((tensor, result),) if together else zip(tensor, result, strict=True)
    for x, y in pairs:
        _values(_codes(x, params, y), params)
    return result


def _codes(x: torch.Tensor, params: QuantParams, out: torch.Tensor) -> torch.Tensor:
    spec = params.spec
    torch.div(x, float(params.scale), out=out)
    return out.round_().add_(float(params.zero_point)).clamp_(spec.qmin, spec.qmax)


def _values(codes: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """Turn float codes into values, in place."""
    return codes.sub_(float(params.zero_point)).mul_(float(params.scale))
