"""Round activations that have one scale, in place and a sample at a time.

The operations are those of :func:`qtool.quant.primitives.fake_quantize` in their order, so values
are equal to the last bit.
"""

import torch

from qtool.quant.primitives import Codebook, PerTensor, QuantParams

# Samples of fewer elements are rounded together: the calls cost more than the cache misses.
SMALL = 1 << 15


def has_one_scale(params: QuantParams, tensor: torch.Tensor) -> bool:
    """Return whether float32 values without gradients are on a grid of equal steps, all the same.

    Args:
        params: of the value.
        tensor: the value.
    """
    plain = isinstance(params.spec.granularity, PerTensor) and not isinstance(params, Codebook)
    return plain and tensor.dtype == torch.float32 and not tensor.requires_grad


def rounded(tensor: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """Return the nearest values on the grid, as ``fake_quantize`` does, without its copies.

    A sample at a time stays in the cache, which is four times faster.

    Args:
        tensor: for which :func:`has_one_scale`.
        params: its grid.
    """
    result = torch.empty_like(tensor)
    together = tensor.dim() < 2 or tensor[:1].numel() < SMALL or tensor.is_cuda
    pairs = ((tensor, result),) if together else zip(tensor, result, strict=True)
    for x, y in pairs:
        values_of(codes_of(x, params, y), params)
    return result


def codes_of(x: torch.Tensor, params: QuantParams, out: torch.Tensor) -> torch.Tensor:
    """Write the codes of ``x`` to ``out``, as floats; return it."""
    spec = params.spec
    torch.div(x, float(params.scale), out=out)
    return out.round_().add_(float(params.zero_point)).clamp_(spec.qmin, spec.qmax)


def values_of(codes: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """Turn float codes into values, in place."""
    return codes.sub_(float(params.zero_point)).mul_(float(params.scale))
