"""Accumulate second moments of a layer's input rows in the float and the quantized network."""

from dataclasses import dataclass

import numpy as np
import torch

from qtool.ptq.second_order.im2col import MatrixLayer
from qtool.quant.plan import Site
from qtool.steps.layerwise import LayerwiseRun

# Rows read of a layer: so many for each unknown (more no longer change the rounding), at least
# enough for the means of small kernels, at most what keeps a wide layer's product affordable.
ROWS_PER_UNKNOWN = 40
MIN_ROWS = 8_192
MAX_ROWS = 200_000

# Elements of the rows of one batch, which are in memory together.
ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Moments:
    """Means and covariances of input rows, one for each group of the layer, float64.

    Attributes:
        rows: that were read.
        mean_float: E[x_float], [groups, unknowns].
        mean_quantized: E[x_q], [groups, unknowns].
        hessian: cov(x_q), [groups, unknowns, unknowns]; about zero where not centred.
        cross: cov(x_float, x_q), the same shape; about zero where not centred.
    """

    rows: int
    mean_float: np.ndarray
    mean_quantized: np.ndarray
    hessian: np.ndarray
    cross: np.ndarray


@dataclass(frozen=True)
class LayerMoments:
    """Moments of all rows, and of two halves of the samples for cross-validation.

    Attributes:
        total: of all rows.
        halves: of every second batch; one only where there is one batch.
    """

    total: Moments
    halves: tuple[Moments, ...]


def layer_moments(
    run: LayerwiseRun, site: Site, layer: MatrixLayer, centred: bool = True, seed: int = 0
) -> LayerMoments:
    """Return moments of a layer's inputs on the ``fit`` samples.

    ::

        H = E[x_q x_q'] - E[x_q] E[x_q]',   C = E[x_float x_q'] - E[x_float] E[x_q]'

    over im2col rows. A layer with more rows than its unknowns need is subsampled: the same share
    of rows, chosen at random, of every batch.

    Args:
        run: whose current layer is ``site``.
        site: the one that ``run.sites()`` yielded last.
        layer: the same layer as a matrix product.
        centred: subtract the means; False where the layer has no bias to take them up.
        seed: of the choice of rows.
    """
    sums: list[_Sums] = []
    with torch.inference_mode():
        for k, rows in enumerate(run.inputs(site, _Selection(run, layer, seed))):
            if k < 2:  # the halves share one shift, so that their sums add up
                sums.append(_Sums(*(sums[0].shifts if sums else _means(*rows))))
            sums[k % 2].add(*rows)
        total = sums[0] if len(sums) == 1 else sums[0] + sums[1]
        return LayerMoments(total.moments(centred), tuple(half.moments(centred) for half in sums))


class _Selection:
    """The same rows of both networks' inputs, batch by batch."""

    def __init__(self, run: LayerwiseRun, layer: MatrixLayer, seed: int) -> None:
        self._layer, self._batches = layer, run.chunks
        self._rng, self._chosen = np.random.default_rng(seed), (-1, torch.empty(0))
        self._share = 1.0

    def __call__(self, batch: int, x: torch.Tensor) -> torch.Tensor:
        """Return the chosen rows of a batch, [groups, rows, unknowns]."""
        if self._chosen[0] != batch:
            self._chosen = batch, self._choose(batch, int(np.prod(self._layer.positions(x))))
        return self._layer.rows(x, self._chosen[1].to(x.device))

    def _choose(self, batch: int, rows: int) -> torch.Tensor:
        layer = self._layer
        if batch == 0:
            limit = int(np.clip(ROWS_PER_UNKNOWN * layer.unknowns, MIN_ROWS, MAX_ROWS))
            self._share = min(1.0, limit / max(rows * self._batches, 1))
        most = max(1, ELEMENTS // (layer.unknowns * layer.groups))
        take = min(max(1, round(rows * self._share)), most, rows)
        if take == rows:
            return torch.arange(rows)
        # At random: equal steps through an image would meet the same columns in every line.
        return torch.from_numpy(np.sort(self._rng.choice(rows, take, replace=False)))


def _means(x_float: torch.Tensor, x_quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x_float.mean(1, keepdim=True), x_quantized.mean(1, keepdim=True)


class _Sums:
    """Sums over rows less a provisional mean, so that float32 products of a batch are exact enough.

    Without it the variance of an input far from zero would be the difference of two large numbers.
    """

    def __init__(self, shift_float: torch.Tensor, shift_quantized: torch.Tensor) -> None:
        self.shifts = shift_float, shift_quantized
        groups, _, size = shift_float.shape
        zeros = [shift_float.new_zeros(s, dtype=torch.float64) for s in ((groups, size),) * 2]
        self.first = zeros
        wide = (groups, size, size)
        self.second = [shift_float.new_zeros(wide, dtype=torch.float64) for _ in range(2)]
        self.rows = 0

    def add(self, x_float: torch.Tensor, x_quantized: torch.Tensor) -> None:
        """Add the rows of one batch, [groups, rows, unknowns]."""
        a, b = x_float - self.shifts[0], x_quantized - self.shifts[1]
        self.rows += a.shape[1]
        for total, part in zip(self.first, (a, b), strict=True):
            total += part.sum(1)
        for total, part in zip(self.second, (b, a), strict=True):
            total += part.transpose(1, 2) @ b

    def __add__(self, other: "_Sums") -> "_Sums":
        total = _Sums(*self.shifts)
        total.rows = self.rows + other.rows
        total.first = [a + b for a, b in zip(self.first, other.first, strict=True)]
        total.second = [a + b for a, b in zip(self.second, other.second, strict=True)]
        return total

    def moments(self, centred: bool) -> Moments:
        """Return means and covariances."""
        rows = max(self.rows, 1)
        offsets = [total / rows for total in self.first]
        shifts = [shift.double()[:, 0] for shift in self.shifts]
        means = [a + b for a, b in zip(offsets, shifts, strict=True)]
        covariances = []
        for total, (left, mean) in zip(
            self.second, ((offsets[1], means[1]), (offsets[0], means[0])), strict=True
        ):
            moment = total / rows - left[:, :, None] * offsets[1][:, None, :]
            if not centred:
                moment = moment + mean[:, :, None] * means[1][:, None, :]
            covariances.append(moment.cpu().numpy())
        mean_float, mean_quantized = (mean.cpu().numpy() for mean in means)
        return Moments(self.rows, mean_float, mean_quantized, *covariances)
