"""The parts of the report that measure or choose: costs of sites, and what a search tried."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from qtool.report.schema import Number, Part

Divergence = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""Spans decades: six significant digits."""
Points = Annotated[float, AfterValidator(lambda value: round(value, 4))]
"""Of drop, decibels, milliseconds: four digits behind the point."""


class Sensitivity(Part):
    """The cost of one site on calibration samples, against the float network.

    `site` is the name of a node, `all`, or `op:TYPE`. `kind` is what is quantized: `weights`,
    `activations` or `both` of the site alone; `cumulative`: the site and all before it; `pair`: the
    site and its `partner`.
    """

    site: str
    kind: Literal["both", "weights", "activations", "cumulative", "pair"]
    kl: Divergence
    """Kullback-Leibler divergence of class scores; else the relative squared error."""
    drop: Points | None = None
    """Of the metric, in its unit; of top1 and top5 the drop that the float network's probabilities
    let expect. Absent where neither labels nor such a metric are there."""
    sqnr_db: Points | None = None
    """At the network's output; absent where nothing is lost."""
    fisher: Divergence | None = None
    """Estimate of `kl` from the diagonal of the Fisher information at the site's output."""
    hessian: Divergence | None = None
    """Estimate of `kl` from the trace of the Hessian of the site's weights."""
    partner: str | None = None
    """The other site of a pair."""
    interaction: Divergence | None = None
    """`kl` of a pair, less that of both sites alone."""


class SearchPoint(Part):
    """One recipe that a search tried: with these keys in the user's recipe it can be run.

    Measured on calibration samples that ranges are not estimated from, where there are enough.
    """

    name: str
    bits: dict[str, Any]
    ptq: list[Any] | None = None
    rewrite: list[str] | None = None
    calibrate: dict[str, Any] | None = None
    """The keys of `calibrate` that searches choose: `method`, and `count` where there is one."""
    kl: Divergence
    """As in `sensitivity`, of the whole network."""
    drop: Points | None = None
    bytes: int
    """Of the file."""
    ms: Points | None = None
    """Of one sample, added up from the times of kernels; absent where none was measured."""


class Rung(Part):
    """One step of `ptq: auto`: what it gained and cost against the best recipe before it."""

    name: str
    used: bool
    kl: Divergence
    drop: Points | None = None
    bytes: int
    ms: Points | None = None
    """Of one sample, the sum over kernels on this machine."""
    seconds: Number
    gained: Points | None = None
    """Points of drop; absent where no drop can be estimated."""
    added_bytes: int
    added_ms: Points | None = None
    findings: list[str] | None = None
    """Causes of the loss that the next steps start from; of plain rounding alone."""


class SearchPart(Part):
    """The recipes of a search that no other one beats, and the one that was chosen."""

    front: list[SearchPoint]
    chosen: SearchPoint
    rungs: list[Rung] | None = None
    """The steps of `ptq: auto`, in order."""
