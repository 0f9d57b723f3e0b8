"""K-means: the shared values of a code book learn; the assignment of weights to them stays."""

from dataclasses import KW_ONLY
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.qat.quantizers.base import CodebookBase, WeightModule, ZeroLevel
from qtool.qat.quantizers.lsq import NarrowWeightQuantizer
from qtool.qat.quantizers.scales import broadcast_scale, from_scale_rows, scale_rows
from qtool.qat.quantizers.ste import straight_through
from qtool.quant.primitives import Codebook, QuantParams
from qtool.weights.grouping import counted_positions
from qtool.weights.kmeans import KMeans

T = torch.Tensor

# The centroid of largest magnitude is this level of the int8 code book.
TOP_LEVEL = 127
# That magnitude counts as no less, so that all centroids may become 0.
LEAST_TOP = 1 / 64


@dataclass(frozen=True)
class KMeansCentroids(NarrowWeightQuantizer):
    """w = s c[index of w]: the centroids c of a layer learn; dL/dc[k] = sum of s g over index k.

    The code book starts as that of bits.scheme: kmeans, with a fixed scale s per channel. Levels of
    the file are 127 c / max |c|, rounded; training computes with these (scales of a fixed form do
    not follow max |c|: there centroids end at 1). Centroids learn at the rate of the weights. Where
    weights are pruned, the centroid nearest to 0 is 0. Activations learn as in lsq.

    Args:
        indices: ``fixed``: weights keep the centroid they have as training starts, and only
            centroids learn; ``nearest``: the weights learn too, straight through, and each takes
            the nearest centroid at every step.
    Source: Han et al. 2016, "Deep Compression", sec. 3 (fine-tuning of centroids),
        arXiv:1510.00149. Departure: a scale per channel; ``nearest``.
    """

    _: KW_ONLY
    indices: Literal["fixed", "nearest"] = "fixed"

    starts_from_codes: ClassVar[bool] = False
    scheme: ClassVar[str] = "kmeans"
    trains_binary: ClassVar[bool] = True

    def narrow_weight(self, params: QuantParams, weight: T) -> WeightModule:
        """Return the module of one layer's weights of less than 8 bits."""
        return CentroidWeight(params, weight, self.indices == "nearest")


class CentroidWeight(CodebookBase):
    """Weights that share the learned values of a code book, times a fixed scale per channel.

    Attributes:
        centroids: learned, ascending as training starts, [levels].
        unit: factor of the centroids, shape [] or [C].
        free: 1 for each centroid that learns, 0 for the one that is 0, [levels].
        indices: centroid of each weight as training starts, int64, the weights' shape.
    """

    at_weight_rate = frozenset({"centroids"})
    scale_tensor: str | None = "unit"
    steps_of_scale = float(TOP_LEVEL)
    unit: T
    free: T
    indices: T

    def __init__(self, params: QuantParams, weight: T, nearest: bool) -> None:
        """Make the module.

        Args:
            params: grid that training starts from; a code book, or equal steps.
            weight: the weights that training starts from.
            nearest: weights learn and take the nearest centroid; else their centroids are fixed.
        """
        super().__init__(params)
        rows = scale_rows(weight.detach(), params)
        counted = counted_positions(rows)
        if not isinstance(params, Codebook) or (params.spec.bits > 1 and not counted.all()):
            # Zeros that fill up the kernel need no centroid; the scheme does not count NaN.
            real = from_scale_rows(rows.masked_fill(~counted, torch.nan), weight, params)
            params, _ = KMeans()(real.cpu().numpy(), params.spec)
        self.nearest, self.keeps_scale = nearest, params.spec.scale_kind != "float"
        # Levels of binary and ternary code books are -1 to 1.
        top = max(float(np.abs(params.levels).max()), 1.0)
        self.centroids = nn.Parameter(torch.tensor(params.levels / top, dtype=torch.float32))
        self.register_buffer("unit", torch.tensor(params.scale * top, dtype=torch.float32))
        self.has_zero = False
        self.register_buffer("free", torch.ones(len(self.centroids)), persistent=False)
        self.register_buffer("indices", self.nearest_index(weight), persistent=not nearest)

    @torch.no_grad()
    def nearest_index(self, weight: T) -> T:
        """Return the index of the centroid nearest to each weight, int64."""
        normal = weight / broadcast_scale(self.unit, weight, self.params)
        ascending, order = self.centroids.sort()
        between = torch.bucketize(normal, (ascending[1:] + ascending[:-1]) / 2, right=True)
        return order[between]

    @property
    def top(self) -> T:
        """Centroid whose level is 127, shape []."""
        top = self.centroids.detach().abs().max().clamp(min=LEAST_TOP)
        return torch.ones_like(top) if self.keeps_scale else top

    @property
    def scale(self) -> T:
        """Difference between neighbouring levels of the file, shape [] or [C]."""
        return self.unit * (self.top / TOP_LEVEL)

    def levels(self) -> T:
        """Return the centroids as levels of the file, whole numbers, differentiable [levels]."""
        return straight_through(self.centroids * self.free / self.top * TOP_LEVEL)

    def forward(self, x: T) -> T:
        """Return each weight's centroid."""
        indices = self.nearest_index(x) if self.nearest else self.indices
        # The gradient of an embedding is pooled over equal indices.
        levels = F.embedding(indices, self.levels().unsqueeze(1)).squeeze(-1)
        values = self._pruned(levels, x) * broadcast_scale(self.scale, x, self.params)
        return values + (x - x.detach()) if self.nearest else values

    def _pruned(self, levels: T, weight: T) -> T:
        """Return the levels, 0 for weights that are exactly 0, where one level is 0."""
        return levels * (weight != 0) if self.has_zero else levels

    def project(self) -> None:
        """Clamp the centroids to the range of int8, where the scale does not follow them."""
        with torch.no_grad():
            self.centroids.mul_(self.free)
            if self.keeps_scale:
                self.centroids.clamp_(-1, 1)

    @torch.no_grad()
    def freeze(self, weight: T) -> tuple[T, QuantParams]:
        """Return the level of each weight, as floats, and the code book."""
        levels = self.levels()
        indices = self.nearest_index(weight) if self.nearest else self.indices
        codes = self._pruned(levels[indices], weight)
        return codes, self.codebook(self.scale, levels.cpu().numpy())

    @torch.no_grad()
    def with_zero_level(self) -> WeightModule:
        """Return this module with the centroid nearest to 0 fixed at 0; two centroids both stay."""
        if self.params.spec.bits == 1:
            return ZeroLevel(self)
        self.has_zero = True
        self.free[self.centroids.abs().argmin()] = 0
        self.project()
        return self
