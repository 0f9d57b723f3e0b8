"""Additive powers of two: levels that are sums of a few powers of two."""

import itertools
from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.quant.primitives import SMALLEST_SCALE, Codebook, PerTensor, QuantSpec, fake_quantize
from qtool.weights.grouping import as_rows, from_rows, scale_shape

TOP_LEVEL = 127


@dataclass(frozen=True)
class APoT:
    """The sign times a sum of powers of two, scaled: w = s (p_1 + ... + p_n), p_i = 0 or 2^-j.

    With k bits for the magnitude there are k / 2 terms of 2 bits; an odd k adds a term of 1 bit.
    Below 7 bits the levels are whole numbers exactly, 0 1 2 3 4 6 8 10 at 4 bits; 7 bits are
    rounded to int8. The range of each channel is scaled by the factor of smallest squared error.

    Args:
        candidates: number of factors tried, evenly spaced from 1 down to 1 / candidates.
    Source: Li, Dong and Wang 2020, "Additive Powers-of-Two Quantization", sec. 2.2 and the authors'
        code for odd bits, arXiv:1909.13144.
    """

    fixed_bits: ClassVar[int | None] = None
    low_bit_only: ClassVar[bool] = True

    _: KW_ONLY
    candidates: int = Field(default=40, ge=1)

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, level_bits: int = 8
    ) -> tuple[Codebook, np.ndarray]:
        """Return the code book and each weight's level, int8 in the shape of the weights."""
        rows, levels = np.nan_to_num(as_rows(weight, spec)), apot_levels(spec.bits)
        largest = np.abs(rows).max(1) / levels[-1]
        best, unit = np.maximum(largest, SMALLEST_SCALE), unit_grid(spec, levels)
        error = np.full(len(rows), np.inf)
        for factor in 1 - np.arange(self.candidates) / self.candidates:
            scale = np.maximum(largest * factor, SMALLEST_SCALE)
            rounded = fake_quantize(rows / scale[:, None], unit)
            trial = np.square(rounded * scale[:, None] - rows).sum(1)
            best, error = np.where(trial < error, scale, best), np.minimum(trial, error)
        shape, best = scale_shape(weight, spec), best.astype(np.float32)
        codes = fake_quantize(rows / best.astype(np.float64)[:, None], unit)
        grid = Codebook(spec, best.reshape(shape), np.zeros(shape, np.int32), levels)
        return grid, from_rows(codes.astype(np.int8), weight, spec)


def unit_grid(spec: QuantSpec, levels: np.ndarray) -> Codebook:
    """Return the code book with scale 1 for all values."""
    one = QuantSpec(spec.bits, spec.signed, spec.symmetric, PerTensor())
    return Codebook(one, np.array(1, np.float32), np.array(0, np.int32), levels)


def apot_levels(bits: int) -> np.ndarray:
    """Return the levels of weights, whole numbers ascending, int32 [2^bits - 1]; 7 bits have fewer.

    Args:
        bits: 2 or more, sign included.
    """
    magnitude = bits - 1
    count = magnitude // 2
    exponents = [[j * count + i + 1 for j in range(2)] for i in range(count)]
    single = []
    if magnitude % 2:
        single = [2 * count + 1]
    for i, term in enumerate(exponents):
        term.append(2 * count + i + 1 + len(single))
    terms = [[0.0, *(2.0**-e for e in term)] for term in (*exponents, single) if term]
    sums = np.unique([sum(chosen) for chosen in itertools.product(*terms)])
    finest = max(e for term in (*exponents, single) for e in term)
    whole = np.ldexp(sums, finest)
    if whole[-1] > TOP_LEVEL:
        whole = np.unique(np.rint(whole * (TOP_LEVEL / whole[-1])))
    return np.concatenate([-whole[:0:-1], whole]).astype(np.int32)
