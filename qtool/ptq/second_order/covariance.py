"""Accumulate second moments of a layer's input rows in the float and the quantized network."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from qtool.ptq.second_order.im2col import MatrixLayer
from qtool.quant.plan import Site
from qtool.runtime.chunk_threads import map_chunks
from qtool.steps.layerwise import LayerwiseRun, Pair
from qtool.steps.row_weights import row_power, row_weights, typical_power

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
        rows: the sum of the weights of those that were read.
        mean_float: E[x_float], [groups, unknowns].
        mean_quantized: E[x_q], [groups, unknowns].
        hessian: H = cov(x_q), [groups, unknowns, unknowns]; about zero where not centred.
        error: cov(W (x_float - x_q), x_q) = W (C - H) with C = cov(x_float, x_q), the shape of W;
            about zero where not centred.
    """

    rows: float
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

    over im2col rows x, weighted by :func:`qtool.steps.row_weights.row_weights`. A layer with more
    rows than its unknowns need is subsampled: the same share of rows, chosen at random, of every
    batch.

    Args:
        run: whose current layer is ``site``.
        site: the one that ``run.sites()`` yielded last.
        layer: the same layer as a matrix product.
        weights: W, [groups, outputs, unknowns].
        centred: subtract the means; False where the layer has no bias to take them up.
        seed: of the choice of rows.
    """
    matrix = torch.from_numpy(weights.astype(np.float32))
    batches = _batches(run.inputs(site, _Selection(run, layer, seed)))
    halves: dict[int, _Sums] = {}
    for product in map_chunks(partial(_product, matrix), batches, run.device):
        halves.setdefault(product.half, _Sums(matrix, product.shift)).add(product)
    parts = [halves[half].close() for half in sorted(halves)]
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return LayerMoments(total.moments(centred), tuple(half.moments(centred) for half in parts))


class _Selection:
    """The same rows of both networks' inputs, batch by batch."""

    def __init__(self, run: LayerwiseRun, layer: MatrixLayer, seed: int) -> None:
        self._layer, self._batches, self._seed = layer, run.chunks, seed

    def __call__(self, batch: int, inputs: Pair) -> Pair:
        """Return the chosen rows of both inputs of a batch, [groups, rows, unknowns]."""
        x_float, x_quantized = inputs
        chosen = self._choose(batch, int(np.prod(self._layer.positions(x_float))))
        chosen = chosen.to(x_float.device)
        return self._layer.rows(x_float, chosen), self._layer.rows(x_quantized, chosen)

    def _choose(self, batch: int, rows: int) -> torch.Tensor:
        layer = self._layer
        limit = int(np.clip(ROWS_PER_UNKNOWN * layer.unknowns, MIN_ROWS, MAX_ROWS))
        share = min(1.0, limit / max(rows * self._batches, 1))
        most = max(1, ELEMENTS // (layer.unknowns * layer.groups))
        take = min(max(1, round(rows * share)), most, rows)
        if take == rows:
            return torch.arange(rows)
        # At random: equal steps through an image would meet the same columns in every line.
        rng = np.random.default_rng((self._seed, batch))
        return torch.from_numpy(np.sort(rng.choice(rows, take, replace=False)))


@dataclass(frozen=True)
class _Batch:
    """Rows of several chunks, [groups, rows, unknowns].

    Attributes:
        half: 0 or 1, of the samples.
        shift: the provisional mean of x_q, of all batches, [groups, 1, unknowns].
        typical: the power of rows with weight 1, of all batches.
        pairs: (x_float, x_q) of each chunk.
    """

    half: int
    shift: torch.Tensor
    typical: torch.Tensor
    pairs: tuple[Pair, ...]


def _batches(inputs: Iterable[Pair]) -> Iterator[_Batch]:
    """Yield the rows of each half of the chunks, enough of them for a product."""
    waiting: tuple[list[Pair], list[Pair]] = ([], [])
    shift = typical = torch.empty(0)

    def batch(half: int) -> _Batch:
        pairs = tuple(waiting[half])
        waiting[half].clear()
        return _Batch(half, shift, typical, pairs)

    for k, (x_float, x_quantized) in enumerate(inputs):
        if k == 0:
            shift = x_quantized.mean(1, keepdim=True)
            typical = typical_power(row_power(x_float, 0, 2))
        waiting[k % 2].append((x_float, x_quantized))
        if sum(pair[0].numel() for pair in waiting[k % 2]) >= PRODUCT_ELEMENTS:
            yield batch(k % 2)
    for half in range(2):
        if waiting[half]:
            yield batch(half)


@dataclass(frozen=True)
class _Product:
    """One batch's share of the sums; products in float32 about the mean of its rows.

    Attributes:
        half, shift: of the batch.
        rows: the sum of their weights.
        mean, rest: weighted mean of x in float32, and the sum of what it leaves.
        error, left: weighted sums of x_float - x_q and of the left factor.
        second: weighted products of x and of the left factor with x.
    """

    half: int
    shift: torch.Tensor
    rows: float
    mean: torch.Tensor
    rest: torch.Tensor
    error: torch.Tensor
    left: torch.Tensor
    second: tuple[torch.Tensor, torch.Tensor]


def _product(weights: torch.Tensor, batch: _Batch) -> _Product:
    """Return the sums over the rows of one batch.

    Args:
        weights: W, [groups, outputs, unknowns]; W e is the left factor where it is smaller than e.
        batch: the rows.
    """
    x_float, x = (
        part[0] if len(part) == 1 else torch.cat(part, 1) for part in zip(*batch.pairs, strict=True)
    )
    of_rows = row_weights(row_power(x_float, 0, 2), batch.typical)  # [1, rows, 1]
    rows = of_rows.sum(1, keepdim=True)
    error, x = (x_float - x).mul_(of_rows), x - batch.shift
    centre = (of_rows * x).sum(1, keepdim=True) / rows
    x -= centre
    left = error @ weights.to(x.device).mT if _through_outputs(weights) else error
    weighted = of_rows * x
    rest, errors, lefts = (part.sum(1).double() for part in (weighted, error, left))
    mean, second = centre[:, 0].double(), (weighted.mT @ x, left.mT @ x)
    return _Product(batch.half, batch.shift, float(rows), mean, rest, errors, lefts, second)


def _through_outputs(weights: torch.Tensor) -> bool:
    """Return whether W e has fewer columns than e."""
    return weights.shape[1] < weights.shape[2]


class _Sums:
    """Sums over rows less a provisional mean, in float64.

    Without the means the variance of an input far from zero would be the difference of two large
    numbers.
    """

    def __init__(self, weights: torch.Tensor, shift: torch.Tensor) -> None:
        self._weights, self._shift = weights.to(shift.device), shift
        groups, outputs, size = weights.shape
        left = outputs if _through_outputs(weights) else size
        self.first = [_zeros(shift, groups, size) for _ in range(2)]
        self.second = [_zeros(shift, groups, rows, size) for rows in (size, left)]
        self.rows = 0.0
        self._products: list[tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, product: _Product) -> None:
        """Add the sums of one batch."""
        self.rows += product.rows
        self.first[0] += product.rest + product.rows * product.mean
        self.first[1] += product.error
        for total, part in zip(self.second, product.second, strict=True):
            total += part
        self._products.append((product.rows, product.mean, product.rest, product.left))

    def close(self) -> "_Sums":
        """Add to the products what the means of their rows contribute; return the sums."""
        if self._products:
            counts, *parts = zip(*self._products, strict=True)
            mean, rest, left = (torch.stack(part, 1) for part in parts)  # groups, products, columns
            rows = torch.tensor(counts, device=mean.device)[:, None]
            self.second[0] += mean.mT @ (rest + rows * mean) + rest.mT @ mean
            self.second[1] += left.mT @ mean
            self._products.clear()
        return self

    def __add__(self, other: "_Sums") -> "_Sums":
        total = _Sums(self._weights, self._shift)
        total.rows = self.rows + other.rows
        total.first = [a + b for a, b in zip(self.first, other.first, strict=True)]
        total.second = [a + b for a, b in zip(self.second, other.second, strict=True)]
        return total

    def moments(self, centred: bool) -> Moments:
        """Return means and covariances."""
        rows, weights = self.rows or 1.0, self._weights.double()
        offset, mean_error = (total / rows for total in self.first)
        mean = offset + self._shift.double()[:, 0]
        second, product = (total / rows for total in self.second)
        if not _through_outputs(weights):
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
