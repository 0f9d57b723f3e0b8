"""Protocol of kernels that compute the sites of a plan one at a time, from codes."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from qtool.quant.plan import Site


class SiteKernels(Protocol):
    """Kernels of the sites and data-movement nodes of one frozen plan."""

    def site(self, site: Site, codes: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Compute the output of a site: codes where it has a grid, else float32 values.

        Args:
            site: one of the plan's.
            codes: codes of its activation inputs by value name, any integer type.
        """
        ...

    def data_movement(
        self, name: str, codes: np.ndarray, computed: Mapping[str, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Compute the outputs of a node that moves codes unchanged, such as a Reshape or Pad.

        Args:
            name: of the node.
            codes: of its first input.
            computed: its other inputs that are not constants, such as a shape, by name.
        """
        ...
