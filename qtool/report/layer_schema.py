"""The parts of the report about layers and outputs."""

from typing import Literal

from qtool.report.schema import Number, Part


class Histogram(Part):
    """The float weights of a layer, or the values that it reads.

    `counts` are of equal bins from `low` to `high`; `grid` is the range of codes, for weights that
    of the widest channel; `channels` is the largest magnitude of each channel, for weights of each
    output channel, or of groups of neighbouring ones.
    """

    low: Number
    high: Number
    counts: list[int]
    grid: tuple[Number, Number]
    channels: list[Number]
    outside: Number | None = None
    """Share of the values that the grid cuts off, from 0 to 1; of inputs alone."""


class Layer(Part):
    """One weighted layer; `sqnr_db` is absent where the layer is float or loses nothing.

    `sqnr_db` is that of the layer alone, `cumulative_sqnr_db` that at its output with all layers
    before it quantized. `bytes` are those of its constants in the file: codes and float numbers
    (`payload_bytes`), scales, and code books. `inputs` are values of the float network on
    evaluation samples.
    """

    name: str
    op: str
    weight_bits: int | Literal["float"] | None = None
    activation_bits: int | Literal["float", "dynamic"] | None = None
    granularity: str | None = None
    sqnr_db: Number | None = None
    cumulative_sqnr_db: Number | None = None
    bytes: int | None = None
    payload_bytes: int | None = None
    scale_bytes: int | None = None
    code_book_bytes: int | None = None
    weights: Histogram | None = None
    inputs: Histogram | None = None


class OutputGroup(Part):
    """A part of an output that carries one quantity: channels `start` to `stop` of `axis`.

    `source` is the value that a Concat puts there; `sqnr_db` is absent where nothing is lost.
    """

    axis: int
    start: int
    stop: int
    source: str
    sqnr_db: Number | None = None


class OutputQuality(Part):
    """One output of the file against the float model's, on the samples of `parity`.

    `sqnr_db` is absent where nothing is lost; where `compared` is false, the output is no float, or
    its shape depends on the values (as behind NonMaxSuppression).
    """

    name: str
    sqnr_db: Number | None = None
    compared: bool = True
    groups: list[OutputGroup] | None = None
