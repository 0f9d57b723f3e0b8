"""The part of the report about weights that are 0 and channels that were removed."""

from pydantic import Field

from qtool.report.schema import Number, Part


class LayerSparsity(Part):
    """The weights of one layer in the file: how many of them are exactly 0."""

    name: str
    weights: int
    zeros: int
    sparsity: Number


class ChannelSparsity(Part):
    """Channels that were removed from the graph, and the multiply-accumulates of one sample."""

    channels: int
    removed: int
    float_macs: int
    macs: int


class SparsityPart(Part):
    """Weights of the file that are exactly 0, in all layers with weights; shares from 0 to 1.

    `compressed_bytes` is the size of the file after deflate (zlib, level 9), which a download or a
    package makes use of; `size.quantized_bytes` is its size on disk.
    """

    sparsity: Number
    weights: int
    zeros: int
    compressed_bytes: int
    float_compressed_bytes: int
    """The same of the float file."""
    channels: ChannelSparsity | None = None
    layers: list[LayerSparsity] = Field(default_factory=list)
