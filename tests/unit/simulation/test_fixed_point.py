"""Rounding shifts, quotients and multipliers of integers, against exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtool.quant.scale_formats import Multiplier, as_integers
from qtool.simulation.fixed_point import ROUNDINGS, common, divide, rescale, shift_right

sums = st.integers(-(2**31), 2**31 - 1)
roundings = st.sampled_from(sorted(ROUNDINGS))


def rounded(x: Fraction, rounding: str) -> int:
    low, rest = math.floor(x), x - math.floor(x)
    if rest != Fraction(1, 2):
        return low + (rest > Fraction(1, 2))
    return {
        "half_even": low + low % 2,
        "half_away": low + (x > 0),
        "half_up": low + 1,
    }[rounding]


def tensor(x: int) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.int64)


@given(sums, st.integers(-8, 62), roundings)
def test_shifts_round_as_their_name_says(x, shift, rounding):
    result = shift_right(tensor(x), tensor(shift), rounding)
    assert result.dtype == torch.int64
    assert int(result) == rounded(Fraction(x) / Fraction(2) ** shift, rounding)


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        ("half_even", [0, 0, 2, -2, 2, -2]),
        ("half_away", [1, -1, 3, -3, 2, -2]),
        ("half_up", [1, 0, 3, -2, 2, -1]),
    ],
)
def test_halves(rounding, expected):
    """0.5, -0.5, 2.5, -2.5, 1.5, -1.5"""
    result = shift_right(torch.tensor([1, -1, 5, -5, 3, -3]), tensor(1), rounding)
    assert result.tolist() == expected


@given(sums, st.integers(1, 10**5), roundings)
def test_quotients_round_as_their_name_says(x, by, rounding):
    assert int(divide(tensor(x), tensor(by), rounding)) == rounded(Fraction(x, by), rounding)


def test_results_of_gemmlowp():
    scale = rescale(as_integers(np.array(0.0072474273418460), "float"))
    result = scale(torch.tensor([10000, -10000, 12345, 69, 70]), "half_away")
    assert result.tolist() == [72, -72, 89, 1, 1]


def test_n2d2s_kernels():
    """(acc * x + 2^(p - 1)) >> p, and (acc + (acc << (n - m)) + 2^(n - 1)) >> n."""
    acc = torch.arange(-5000, 5000, 7)
    product = rescale(as_integers(np.array([0.3]), "fixed_point:16"))
    assert torch.equal(product(acc, "half_up"), (acc * 19661 + 2**15) >> 16)
    double = rescale(as_integers(np.array([2.0**-7 + 2.0**-8]), "double_shift"))
    assert torch.equal(double(acc, "half_up"), (acc + (acc << 1) + 2**7) >> 8)
    single = rescale(as_integers(np.array([2.0**-6]), "power_of_two"))
    assert torch.equal(single(acc, "half_up"), (acc + 2**5) >> 6)


@given(sums, st.floats(2.0**-60, 4.0), roundings)
def test_a_multiplier_is_its_number(acc, alpha, rounding):
    multiplier = as_integers(np.array([alpha]), "float")
    result = int(rescale(multiplier)(tensor(acc), rounding))
    exact = Fraction(acc) * Fraction(float(multiplier.value[0]))
    if multiplier.shift[0] <= 62:
        assert result == rounded(exact, rounding)
    else:  # below a half whatever the sum
        assert abs(result) <= 1 and abs(exact) < 1


@given(
    st.lists(st.integers(-255, 255), min_size=2, max_size=2),
    st.lists(st.integers(-6, 3), min_size=2, max_size=2),
    st.sampled_from(["power_of_two", "float", "fixed_point:16"]),
)
def test_terms_are_added_before_they_are_rounded(codes, exponents, kind):
    alphas = np.ldexp(1.0, exponents) * (1.0 if kind == "power_of_two" else 1.1)
    multiplier = as_integers(alphas, kind, together=True)
    total, shift = common([tensor(c) for c in codes], rescale(multiplier))
    exact = sum(c * Fraction(float(a)) for c, a in zip(codes, multiplier.value, strict=True))
    assert Fraction(int(total)) / Fraction(2) ** int(shift) == exact


def test_the_three_forms_stand_for_their_numbers():
    one = np.array([1], np.int64)
    for form, factor, shift, value in (
        ("product", 3, 2, 0.75),
        ("shift", 0, -2, 4.0),
        ("double", 2, 3, 0.625),
    ):
        multiplier = Multiplier(form, one * factor, one * shift)
        assert multiplier.value[0] == value
        assert int(rescale(multiplier)(tensor(64), "half_even")) == 64 * value
