"""Matrix products."""

import torch
import torch.nn.functional as F

from qtool.runtime.tensors import Op, T


def matmul(a: T, b: T) -> T:
    """Multiply matrices with numpy's broadcasting."""
    return torch.matmul(a, b)


def gemm(
    a: T,
    b: T,
    c: T | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> T:
    """Compute alpha * A' B' + beta * C."""
    if transA:
        a = a.t()
    # One fused call for the common case; integers (codes) take the general path below.
    if alpha == beta == 1.0 and transB and (c is None or c.dim() == 1) and a.is_floating_point():
        return F.linear(a, b, c)
    y = torch.matmul(a, b.t() if transB else b)
    if alpha != 1.0:
        y = y * alpha
    if c is not None:
        y = y + (c if beta == 1.0 else c * beta)
    return y


def einsum(*tensors: T, equation: str) -> T:
    """Sum products by index names."""
    return torch.einsum(equation.replace(" ", ""), *tensors)


def det(x: T) -> T:
    """Compute the determinant over the last two axes."""
    return torch.linalg.det(x)


TABLE: dict[str, Op] = {"MatMul": matmul, "Gemm": gemm, "Einsum": einsum, "Det": det}
