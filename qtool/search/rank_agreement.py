"""State how well cheap measures of the sites' costs rank them."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau

from qtool.report.search_schema import Sensitivity

MEASURES = ("kl", "sqnr_db", "fisher", "hessian")


def rank_agreement(rows: Sequence[Sensitivity]) -> list[str]:
    """Return sentences with Kendall's tau of each measure against the true cost.

    The true cost is the drop of the metric where it differs between more than half of the
    sites, else the divergence: most sites of a network of 8 bits lose nothing on a few samples.

    Args:
        rows: costs of single sites alone; those of kind ``both`` are read.
    """
    rows = [row for row in rows if row.kind == "both"]
    drops = [row.drop for row in rows if row.drop is not None]
    by_drop = len(drops) == len(rows) and len(set(drops)) > max(1, len(rows) // 2)
    truth = "drop" if by_drop else "kl"
    measures = [name for name in MEASURES if name != truth]
    taus = {name: tau for name in measures if (tau := _tau(rows, name, truth)) is not None}
    if not taus:
        return []
    listed = ", ".join(f"{name} {tau:.2f}" for name, tau in taus.items())
    words = {"drop": "the drops", "kl": "the divergences (kl)"}
    return [f"Kendall's tau against {words[truth]} of single sites: {listed}"]


def _tau(rows: Sequence[Sensitivity], name: str, truth: str) -> float | None:
    """Return the rank correlation over the sites that have both; None where all are equal."""
    sign = -1.0 if name == "sqnr_db" else 1.0
    pairs = [
        (sign * measured, cost)
        for row in rows
        if (measured := getattr(row, name)) is not None
        and (cost := getattr(row, truth)) is not None
    ]
    if len(pairs) < 2:
        return None
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return None if np.isnan(tau) else tau
