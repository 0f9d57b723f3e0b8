"""The parts of the report that measure or choose: costs of sites, and what a search tried."""

from typing import Any, Literal

from qtool.report.schema import Number, Part


class Sensitivity(Part):
    """The cost of one site on calibration samples, against the float network.

    `site` is the name of a node, `all`, or `op:TYPE`. `kind` is what is quantized: `weights`,
    `activations` or `both` of the site alone; `cumulative`: the site and all before it; `pair`: the
    site and its `partner`.
    """

    site: str
    kind: Literal["both", "weights", "activations", "cumulative", "pair"]
    kl: Number
    """Kullback-Leibler divergence of class scores; else the relative squared error."""
    drop: Number | None = None
    """Of the metric, in its unit; absent without labels."""
    sqnr_db: Number | None = None
    """At the network's output; absent where nothing is lost."""
    fisher: Number | None = None
    """Estimate of `kl` from the diagonal of the Fisher information at the site's output."""
    hessian: Number | None = None
    """Estimate of `kl` from the trace of the Hessian of the site's weights."""
    partner: str | None = None
    """The other site of a pair."""
    interaction: Number | None = None
    """`kl` of a pair, less that of both sites alone."""


class SearchPoint(Part):
    """One recipe that a search tried: with its `bits` and `ptq` in the user's recipe it can be run.

    Measured on calibration samples that ranges are not estimated from, where there are enough.
    """

    name: str
    bits: dict[str, Any]
    ptq: list[Any] | None = None
    rewrite: list[str] | None = None
    kl: Number
    """As in `sensitivity`, of the whole network."""
    drop: Number | None = None
    bytes: int
    """Of the file."""
    ms: Number | None = None
    """Of one sample, added up from the times of kernels; absent where none was measured."""


class Rung(Part):
    """One step of `ptq: auto`: what it gained and cost against the best recipe before it."""

    name: str
    used: bool
    kl: Number
    drop: Number | None = None
    bytes: int
    ms: Number | None = None
    """Of one sample, the sum over kernels on this machine."""
    seconds: Number
    gained: Number | None = None
    """Points of drop; absent without labels."""
    added_bytes: int
    added_ms: Number | None = None
    findings: list[str] | None = None
    """Causes of the loss that the next steps start from; of plain rounding alone."""


class SearchPart(Part):
    """The recipes of a search that no other one beats, and the one that was chosen."""

    front: list[SearchPoint]
    chosen: SearchPoint
    rungs: list[Rung] | None = None
    """The steps of `ptq: auto`, in order."""
