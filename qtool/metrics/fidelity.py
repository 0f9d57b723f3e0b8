"""Metrics of outputs against the float model's: cosine, signal to quantization noise."""

import math

import numpy as np

from qtool.errors import DataError


def cosine(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute the cosine between each sample's output and the float model's, [N].

    Args:
        outputs: [N, ...].
        reference: the float model's outputs, the same shape; two outputs of zeros count as 1.

    Raises:
        DataError: a value is NaN or Inf.
    """
    a, b = _flat(outputs), _flat(reference)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    equal = (a == b).all(axis=1)
    cosines = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return np.where(equal, 1.0, cosines)


def _flat(outputs: np.ndarray) -> np.ndarray:
    """Reshape outputs to float64 [N, elements]; refuse values that are not finite."""
    flat = outputs.astype(np.float64).reshape(len(outputs), -1)
    if not np.isfinite(flat).all():
        raise DataError(
            "the model's first output holds NaN or Inf; expected finite numbers: check the model"
        )
    return flat


def powers(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute the power of each sample's float output and of the difference from it, [N, 2].

    Args:
        outputs: [N, ...].
        reference: the float model's outputs, the same shape.

    Raises:
        DataError: a value is NaN or Inf.
    """
    signal = _flat(reference)
    noise = signal - _flat(outputs)
    return np.stack([np.square(signal).sum(axis=1), np.square(noise).sum(axis=1)], axis=1)


def decibels(sample_powers: np.ndarray, weights: np.ndarray) -> float:
    """Compute 10 log10(sum of signal / sum of noise), in dB; inf without noise.

    Args:
        sample_powers: see :func:`powers`.
        weights: how often each sample counts, [N].
    """
    signal, noise = (float(x) for x in weights @ sample_powers)
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def sqnr_db(reference: np.ndarray, test: np.ndarray) -> float:
    """Compute the signal to quantization noise in dB.

    10 log10(sum reference^2 / sum (reference - test)^2)

    Args:
        reference: values of the float model.
        test: the same values of the quantized model, of the same shape.

    Returns:
        inf where the two are equal; -inf where only the reference is all zero.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != test.shape:
        raise ValueError(f"arrays have shapes {reference.shape} and {test.shape}")
    signal = reference.astype(np.float64)
    noise = float(np.sum(np.square(signal - test)))
    power = float(np.sum(np.square(signal)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def power_db(signal: float, noise: float) -> float | None:
    """Compute 10 log10(signal / noise), in dB; None where there is no noise or no signal.

    Args:
        signal: sum of the squares of the float model's values.
        noise: sum of the squares of the differences.
    """
    if noise <= 0 or signal <= 0:
        return None
    return 10 * math.log10(signal / noise)


def finite_powers(reference: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Sum the squares of the reference and of the difference, over elements finite in both.

    Args:
        reference: values of the float model.
        test: the same values of the quantized model, of the same shape.

    Returns:
        (signal, noise), for :func:`power_db`.
    """
    signal, other = reference.astype(np.float64), test.astype(np.float64)
    finite = np.isfinite(signal) & np.isfinite(other)
    signal, other = signal[finite], other[finite]
    return float(np.square(signal).sum()), float(np.square(signal - other).sum())
