"""Learned scales of a fixed form: a power of two, a sum of two, or one that makes a multiplier so.

Each scale is rounded to the form wherever it is used; gradients pass as if it were not.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from qtool.errors import RecipeError
from qtool.qat.quantizers.base import GridModule
from qtool.quant.primitives import SMALLEST_SCALE
from qtool.quant.scale_formats import neighbours

T = torch.Tensor


class RestrictedScale(nn.Module):
    """The nearest scale of a form, straight through.

    s <- nearest form of s * ratio, divided by ratio; nearest by quotient.
    """

    def __init__(self, kind: str, steps: float, ratio: Callable[[], float]) -> None:
        """Make the parametrization.

        Args:
            kind: ``power_of_two``, ``double_shift`` or ``fixed_point:<bits>``.
            steps: the tensor holds this many times the scale.
            ratio: returns the factor whose product with the scale has the form.
        """
        super().__init__()
        self.kind, self.steps, self.ratio = kind, steps, ratio

    @torch.no_grad()
    def nearest(self, tensor: T) -> T:
        """Return the tensor with scales of the form, same shape."""
        ratio = self.ratio()
        scale = tensor.detach().cpu().double().numpy() / self.steps
        alpha = np.maximum(scale, SMALLEST_SCALE) * ratio
        candidates = np.stack(neighbours(alpha, self.kind))
        distance = np.abs(np.log(candidates / alpha))
        best = np.take_along_axis(candidates, distance.argmin(0)[None], 0)[0]
        rounded = torch.from_numpy(np.asarray((best / ratio).astype(np.float32)))
        return rounded.reshape(tensor.shape).to(tensor.device) * self.steps

    def forward(self, tensor: T) -> T:
        """Return the tensor with scales of the form; the gradient is that of the identity."""
        return tensor + (self.nearest(tensor) - tensor).detach()

    def right_inverse(self, tensor: T) -> T:
        """Return what an assignment stores: the tensor as it is."""
        return tensor


def restrict_scale(module: GridModule, kind: str, ratio: Callable[[], float] = lambda: 1.0) -> None:
    """Let a module round its scale to a form.

    Args:
        module: its ``scale_tensor`` names what holds the scale.
        kind: ``power_of_two``, ``double_shift`` or ``fixed_point:<bits>``.
        ratio: returns the factor whose product with the scale has the form.

    Raises:
        RecipeError: the module computes its scale from more than one tensor.
    """
    owner = module.scale_owner
    if owner.scale_tensor is None:
        raise RecipeError(
            f"qat: the scales of {type(owner).__name__} follow from several learned numbers and "
            "cannot have a fixed form; expected bits.scale: float, or another quantizer"
        )
    restriction = RestrictedScale(kind, owner.steps_of_scale, ratio)
    parametrize.register_parametrization(owner, owner.scale_tensor, restriction, unsafe=True)
