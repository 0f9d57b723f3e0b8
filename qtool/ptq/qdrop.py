"""QDrop: block reconstruction in which activations stay unrounded at random."""

from dataclasses import KW_ONLY
from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.ptq.brecq import Brecq


@dataclass(frozen=True)
class QDrop(Brecq):
    """Learn blocks as brecq does; activations are rounded with probability 1 - drop only.

    In every iteration each element of an activation keeps its unrounded value with probability
    ``drop``, and each element of the block's input that of the float network. Learned roundings
    are then less bound to the errors of these samples (flatter minima); for activations of 4 bits
    and fewer. A block is left as it was where its error on holdout samples does not fall, without
    dropping. No labels are read.

    Args:
        drop: probability that an element stays unrounded; 0 is brecq.
    The other options are those of brecq.

    Source: Wei et al. 2022, "QDrop", arXiv:2203.05740.
    Departure: as of brecq.
    """

    _: KW_ONLY
    drop: float = Field(default=0.5, ge=0, lt=1)
    name: ClassVar[str] = "qdrop"

    @property
    def drop_probability(self) -> float:
        """The probability that an element of an activation stays unrounded in an iteration."""
        return self.drop
