"""Activation functions."""

import torch
import torch.nn.functional as F

from qtool.runtime.tensors import Op, T


def leaky_relu(x: T, *, alpha: float = 0.01) -> T:
    """Multiply negative values by alpha."""
    return F.leaky_relu(x, alpha)


def prelu(x: T, slope: T) -> T:
    """Multiply negative values by a slope that broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


def elu(x: T, *, alpha: float = 1.0) -> T:
    """Compute alpha * (exp(x) - 1) below zero, x above."""
    return F.elu(x, alpha)


def selu(x: T, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> T:
    """Compute gamma * elu(x)."""
    return gamma * F.elu(x, alpha)


def celu(x: T, *, alpha: float = 1.0) -> T:
    """Compute alpha * (exp(x / alpha) - 1) below zero, x above."""
    return F.celu(x, alpha)


def thresholded_relu(x: T, *, alpha: float = 1.0) -> T:
    """Return values above alpha, zero elsewhere."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def hard_sigmoid(x: T, *, alpha: float = 0.2, beta: float = 0.5) -> T:
    """Compute alpha * x + beta, clamped to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0, 1)


def hard_swish(x: T) -> T:
    """Compute x * hard_sigmoid(x) with alpha 1/6 and beta 1/2."""
    return F.hardswish(x)


def softplus(x: T) -> T:
    """Compute log(1 + exp(x))."""
    return F.softplus(x)


def softsign(x: T) -> T:
    """Compute x / (1 + |x|)."""
    return F.softsign(x)


def mish(x: T) -> T:
    """Compute x * tanh(softplus(x))."""
    return F.mish(x)


def gelu(x: T, *, approximate: str = "none") -> T:
    """Compute x * P(X <= x), X standard normal: by erf, or approximated by tanh."""
    return F.gelu(x, approximate=approximate)


def swish(x: T, *, alpha: float = 1.0) -> T:
    """Compute x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def shrink(x: T, *, bias: float = 0.0, lambd: float = 0.5) -> T:
    """Set values within lambd of zero to zero; bring the others bias closer to it."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


TABLE: dict[str, Op] = {
    "Relu": torch.relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Elu": elu,
    "Selu": selu,
    "Celu": celu,
    "ThresholdedRelu": thresholded_relu,
    "Sigmoid": torch.sigmoid,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Softplus": softplus,
    "Softsign": softsign,
    "Mish": mish,
    "Gelu": gelu,
    "Swish": swish,
    "Shrink": shrink,
    "Tanh": torch.tanh,
}
