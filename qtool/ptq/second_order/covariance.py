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


# Of float64 sums, relative to the second moments about the provisional mean, with some margin.
ROUNDING_ERROR = 1e-10

# Elements of rows that are multiplied at once: the additions to the sums of few rows cost more than
# their product.
PRODUCT_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Moments:
    """Means and covariances of input rows, one for each group of the layer, float64.

    Attributes:
        rows: that were read.
        mean_float: E[x_float], [groups, unknowns].
        mean_quantized: E[x_q], [groups, unknowns].
        hessian: H = cov(x_q), [groups, unknowns, unknowns]; about zero where not centred.
        error: cov(W (x_float - x_q), x_q) = W (C - H) with C = cov(x_float, x_q), the shape of W;
            about zero where not centred.
    """

    rows: int
    mean_float: np.ndarray
    mean_quantized: np.ndarray
    hessian: np.ndarray
    error: np.ndarray


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
    run: LayerwiseRun,
    site: Site,
    layer: MatrixLayer,
    weights: np.ndarray,
    centred: bool = True,
    seed: int = 0,
) -> LayerMoments:
    """Return moments of a layer's inputs on the ``fit`` samples.

    ::

        H = E[x_q x_q'] - E[x_q] E[x_q]',   W (C - H) with C = E[x_float x_q'] - E[x_float] E[x_q]'

    over im2col rows. A layer with more rows than its unknowns need is subsampled: the same share
    of rows, chosen at random, of every batch.

    Args:
        run: whose current layer is ``site``.
        site: the one that ``run.sites()`` yielded last.
        layer: the same layer as a matrix product.
        weights: W, [groups, outputs, unknowns].
        centred: subtract the means; False where the layer has no bias to take them up.
        seed: of the choice of rows.
    """
    halves: list[_Sums] = []
    matrix = torch.from_numpy(weights.astype(np.float32))
    with torch.inference_mode():
        for k, rows in enumerate(run.inputs(site, _Selection(run, layer, seed))):
            if k < 2:  # the halves share one shift, so that their sums add up
                shift = halves[0].shift if halves else rows[1].mean(1, keepdim=True)
                halves.append(_Sums(shift, matrix.to(shift.device)))
            halves[k % 2].add(*rows)
        for half in halves:
            half.flush()
        total = halves[0] if len(halves) == 1 else halves[0] + halves[1]
        return LayerMoments(total.moments(centred), tuple(half.moments(centred) for half in halves))


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


class _Sums:
    """Sums over rows less a provisional mean, in float64; products of few rows in float32.

    Without the means the variance of an input far from zero would be the difference of two large
    numbers.
    """

    def __init__(self, shift: torch.Tensor, weights: torch.Tensor) -> None:
        self.shift, self._weights = shift, weights
        groups, outputs, size = weights.shape
        self._through_outputs = outputs < size  # W e first, then its product with x_q
        left = outputs if self._through_outputs else size
        self.first = [_zeros(weights, groups, size) for _ in range(2)]
        self.second = [_zeros(weights, groups, rows, size) for rows in (size, left)]
        self.rows = 0
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, x_float: torch.Tensor, x_quantized: torch.Tensor) -> None:
        """Add the rows of one batch, [groups, rows, unknowns]."""
        self._waiting.append((x_quantized - self.shift, x_float - x_quantized))
        if sum(rows.numel() for rows, _ in self._waiting) >= PRODUCT_ELEMENTS:
            self.flush()

    def flush(self) -> None:
        """Add the products of all rows so far."""
        if not self._waiting:
            return
        parts = zip(*self._waiting, strict=True)
        x, error = (rows[0] if len(rows) == 1 else torch.cat(rows, 1) for rows in parts)
        self._waiting.clear()
        rows, centre = x.shape[1], x.mean(1, keepdim=True)
        x, left = x - centre, error @ self._weights.mT if self._through_outputs else error
        # float32 products about the mean of the rows, float64 for what the mean adds to them.
        mean, rest = centre[:, 0].double(), x.sum(1).double()
        self.rows += rows
        self.first[0] += rest + rows * mean
        self.first[1] += error.sum(1)
        self.second[0] += (x.mT @ x).double() + _outer(mean, rest)
        self.second[0] += _outer(rest, mean) + rows * _outer(mean, mean)
        self.second[1] += (left.mT @ x).double() + _outer(left.sum(1).double(), mean)

    def __add__(self, other: "_Sums") -> "_Sums":
        total = _Sums(self.shift, self._weights)
        total.rows = self.rows + other.rows
        total.first = [a + b for a, b in zip(self.first, other.first, strict=True)]
        total.second = [a + b for a, b in zip(self.second, other.second, strict=True)]
        return total

    def moments(self, centred: bool) -> Moments:
        """Return means and covariances."""
        rows, weights = max(self.rows, 1), self._weights.double()
        offset, mean_error = (total / rows for total in self.first)
        mean = offset + self.shift.double()[:, 0]
        second, product = (total / rows for total in self.second)
        if not self._through_outputs:
            product = weights @ product
        output_error = (weights @ mean_error[:, :, None])[:, :, 0]
        hessian, error = (
            moment - _outer(left, offset)
            for moment, left in ((second, offset), (product, output_error))
        )
        # Where an input hardly varies, the difference is rounding error, and may be indefinite.
        hessian += ROUNDING_ERROR * torch.diag_embed(second.diagonal(dim1=1, dim2=2))
        if not centred:
            hessian, error = hessian + _outer(mean, mean), error + _outer(output_error, mean)
        arrays = (mean + mean_error, mean, hessian, error)
        return Moments(self.rows, *(array.cpu().numpy() for array in arrays))


def _zeros(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_zeros(shape, dtype=torch.float64)


def _outer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[:, :, None] * b[:, None, :]
