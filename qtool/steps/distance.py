"""Compare the outputs of a quantized network with those of the float network."""

from collections.abc import Iterator

import numpy as np

# Elements that are compared at once.
CHUNK = 1 << 24


def distance(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Return the mean distance of outputs to the reference; 0 when they are equal.

    Class scores [N, C], C > 1, are compared by the Kullback-Leibler divergence of their softmax::

        mean_n sum_c p_nc * (log p_nc - log q_nc),  p = softmax(reference), q = softmax(outputs)

    Rows that are probabilities already are compared as they are. Everything else is compared by
    the squared error relative to the reference's power.

    Args:
        reference: of the float network, [N, ...].
        outputs: of the quantized network, the same shape.
    """
    return float(distances(reference, outputs).mean())


def distances(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return what each sample adds to :func:`distance`, whose mean it is; float64 [N].

    Args:
        reference: of the float network, [N, ...].
        outputs: of the quantized network, the same shape.
    """
    if reference.ndim == 2 and reference.shape[1] > 1:
        reference, outputs = (np.asarray(array, np.float64) for array in (reference, outputs))
        return np.asarray(np.sum(_probabilities(reference) * _log_ratio(reference, outputs), 1))
    errors: list[np.ndarray] = []
    powers: list[np.ndarray] = []
    for part, other in _parts(reference, outputs):
        rows = (len(part), -1)
        errors.append(((part - other) ** 2).reshape(rows).mean(1))
        powers.append((part**2).reshape(rows).mean(1))
    return np.asarray(np.concatenate(errors) / (np.concatenate(powers).mean() or 1.0))


def _parts(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of two arrays in float64, as many at a time as have CHUNK elements."""
    rows = max(1, CHUNK // max(1, first[:1].size))
    for k in range(0, len(first), rows):
        yield first[k : k + rows].astype(np.float64), second[k : k + rows].astype(np.float64)


def _log_ratio(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    # Below 1e-12 a probability is 0 to float32; its logarithm would decide the mean.
    p, q = (np.clip(_probabilities(array), 1e-12, None) for array in (reference, outputs))
    return np.asarray(np.log(p) - np.log(q))


def are_probabilities(rows: np.ndarray) -> bool:
    """Return whether rows [N, C] hold no negative number and sum to 1."""
    return bool(rows.min() >= -1e-6 and np.allclose(rows.sum(1), 1, atol=1e-3))


def _probabilities(scores: np.ndarray) -> np.ndarray:
    """Return rows that sum to 1: the softmax, unless they do already."""
    if are_probabilities(scores):
        return np.clip(scores, 0, None)
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))
