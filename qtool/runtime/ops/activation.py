"""Activation functions."""

import torch
import torch.nn.functional as F

from qtool.runtime.tensors import Op, T


def leaky_relu(x: T, *, alpha: float = 0.01) -> T:
    """Negative values times alpha."""
    return F.leaky_relu(x, alpha)


def prelu(x: T, slope: T) -> T:
    """Negative values times a slope that broadcasts to x."""
    return torch.where(x < 0, x * slope, x)


def elu(x: T, *, alpha: float = 1.0) -> T:
    """Alpha * (exp(x) - 1) below zero."""
    return F.elu(x, alpha)


def selu(x: T, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> T:
    """Elu times gamma."""
    return gamma * F.elu(x, alpha)


def celu(x: T, *, alpha: float = 1.0) -> T:
    """Alpha * (exp(x / alpha) - 1) below zero."""
    return F.celu(x, alpha)


def thresholded_relu(x: T, *, alpha: float = 1.0) -> T:
    """Values above alpha, else zero."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def hard_sigmoid(x: T, *, alpha: float = 0.2, beta: float = 0.5) -> T:
    """Alpha * x + beta, limited to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0, 1)


def hard_swish(x: T) -> T:
    """X times hard sigmoid with alpha 1/6."""
    return F.hardswish(x)


def softplus(x: T) -> T:
    """log(1 + exp(x))."""
    return F.softplus(x)


def softsign(x: T) -> T:
    """X / (1 + |x|)."""
    return F.softsign(x)


def mish(x: T) -> T:
    """X * tanh(softplus(x))."""
    return F.mish(x)


def gelu(x: T, *, approximate: str = "none") -> T:
    """X times the normal distribution function, exact or by tanh."""
    return F.gelu(x, approximate=approximate)


def swish(x: T, *, alpha: float = 1.0) -> T:
    """X * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def shrink(x: T, *, bias: float = 0.0, lambd: float = 0.5) -> T:
    """Values within lambd of zero become zero, the others move by bias toward it."""
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
