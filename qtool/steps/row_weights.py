"""Weight the rows of least-squares fits, so that a few large rows do not decide them.

In some networks one place of the image, or one token, has activations whose power is hundreds of
times the typical one (massive activations: the corner in the last blocks of MobileNetV2 has 900
times the median). Activation functions behind them cut most of it off, and ranges clip them, so
their errors are large and matter little; in a plain sum of squares they outweigh all other rows.
"""

import torch


def row_power(values: torch.Tensor, *axes: int) -> torch.Tensor:
    """Return the sum of squares of each row; the axes within a row have size 1.

    Args:
        values: of the float network.
        axes: within a row: channels, groups.
    """
    return values.square().sum(axes, keepdim=True)


def typical_power(power: torch.Tensor) -> torch.Tensor:
    """Return the median power of rows; infinity where most rows are zero."""
    median = power.median()
    return torch.where(median > 0, median, torch.inf)


def row_weights(power: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
    """Return the weights of rows: min(1, typical / power).

    No row adds more to a sum of squares than a typical one.

    Source: weights of Mallows' type, Hampel et al. 1986, "Robust Statistics: The Approach Based on
        Influence Functions", sec. 6.3; massive activations: Sun et al. 2024, arXiv:2402.17762.

    Args:
        power: see :func:`row_power`.
        typical: see :func:`typical_power`, of all rows or of some.
    """
    return (typical / power.clamp(min=torch.finfo(power.dtype).tiny)).clamp(max=1.0)
