"""Class scores of some samples, chosen so that shares of the data merge to the same ones."""

from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import dims

# Rows at most, and elements of all rows together, which bounds them for large vocabularies.
MAX_ROWS = 256
MAX_ELEMENTS = 1 << 20


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Rows of a value [N, C]; ``a + b`` are those of the samples of both.

    The rows with the smallest digests are the ones that remain, so any order and any grouping of
    the samples gives the same rows (bottom-k sampling).

    Attributes:
        rows: float32 [at most MAX_ROWS, C], by ascending digest.
        digests: uint64 [rows], of the bytes of each row.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    digests: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    @classmethod
    def of(cls, array: np.ndarray) -> "ClassScores":
        """Return the rows of one batch, [N, C]."""
        rows = np.ascontiguousarray(array, np.float32)
        digests = [blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
        numbers = np.array([int.from_bytes(d, "little") for d in digests], np.uint64)
        return cls(rows, numbers)._smallest()

    def __add__(self, other: "ClassScores") -> "ClassScores":
        if not len(self.rows) or not len(other.rows):
            return self if len(self.rows) else other
        joined = ClassScores(
            np.concatenate([self.rows, other.rows]), np.concatenate([self.digests, other.digests])
        )
        return joined._smallest()

    def _smallest(self) -> "ClassScores":
        limit = max(1, min(MAX_ROWS, MAX_ELEMENTS // max(self.rows.shape[1], 1)))
        order = np.argsort(self.digests, kind="stable")[:limit]
        return ClassScores(self.rows[order], self.digests[order])


def has_class_scores(value: ir.Value) -> bool:
    """Return whether a value is an output of the network with a row of scores for each sample."""
    shape = dims(value)
    if not value.is_graph_output() or shape is None or len(shape) != 2:
        return False
    return not (isinstance(shape[1], int) and shape[1] < 2)
