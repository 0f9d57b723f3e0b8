"""The table of rules: a statistic for each layer or value, its threshold, and where they come from.

A rule proposes; a trial on held-out samples decides (:mod:`qtool.diagnosis.diagnose`): a finding
whose change gains nothing is not reported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

import qtool.diagnosis.advice as advice
from qtool.diagnosis.advice import Advice
from qtool.diagnosis.facts import Facts
from qtool.diagnosis.replacements import all_activations, exact_activations, exact_weights
from qtool.diagnosis.statistics import gap_below_median, growth, outlier_ratio, range_ratio
from qtool.diagnosis.statistics import shift_share as shift_share_of
from qtool.diagnosis.trials import Trials

Values = Mapping[str, float]
"""The statistic of each place: a layer, an activation, or a part of the network."""

# Calibration samples up to which ranges can still grow with more of them.
FEW_SAMPLES = 128


@dataclass(frozen=True)
class Rule:
    """An entry of RULES.

    Attributes:
        name: of the rule.
        statistic: computes a number for each place.
        threshold: from which a place is suspected.
        source: of the statistic or the threshold.
        advise: words, recipe lines and the trial for the suspected places.
        general: names a part of the network and no cause; left out where a cause explains it.
    """

    name: str
    statistic: Callable[[Facts, Trials], Values]
    threshold: float
    source: str
    advise: Callable[[Facts, Values], Advice]
    general: bool = False

    def suspects(self, facts: Facts, trials: Trials) -> dict[str, float]:
        """Return the places at or above the threshold, the largest number first."""
        values = self.statistic(facts, trials)
        ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
        return {place: value for place, value in ranked if value >= self.threshold}


def weight_range_ratios(facts: Facts, trials: Trials) -> Values:
    """Compute the ratio of channel ranges for weights with one scale."""
    sites = facts.measured.sites
    return {
        name: range_ratio(sites[name].weight_limits)
        for name in facts.layers
        if facts.is_per_tensor(name)
    }


def activation_range_ratios(facts: Facts, trials: Trials) -> Values:
    """Compute the ratio of channel ranges for activations between two layers."""
    outputs = {site.output for site in facts.layers.values()}
    read = {site.inputs[0] for site in facts.layers.values()}
    return {
        name: range_ratio(value.limits)
        for name, value in facts.measured.values.items()
        if name in outputs and facts.plan.grid_of[name] in {facts.plan.grid_of[r] for r in read}
    }


def weights_share(facts: Facts, trials: Trials) -> Values:
    """Compute the share of the drop that exact weights would recover, if it is the larger."""
    weights, activations = _shares(facts, trials)
    return {"weights": weights} if weights > activations else {}


def activations_share(facts: Facts, trials: Trials) -> Values:
    """Compute the share of the drop that exact activations would recover, if it is the larger."""
    weights, activations = _shares(facts, trials)
    return {"activations": activations} if activations > weights else {}


def _shares(facts: Facts, trials: Trials) -> tuple[float, float]:
    if trials.drop <= 0:
        return 0.0, 0.0
    weights = trials.gain(exact_weights(facts, facts.layers))
    activations = trials.gain(exact_activations(facts, all_activations(facts)))
    return weights / trials.drop, activations / trials.drop


def sqnr_gaps(facts: Facts, trials: Trials) -> Values:
    """Compute by how many dB each layer's signal to noise lies below the median of all layers."""
    finite = {n: s.sqnr_db for n, s in facts.measured.sites.items() if np.isfinite(s.sqnr_db)}
    gaps = gap_below_median(np.array(list(finite.values())))
    return dict(zip(finite, gaps.tolist(), strict=True))


def clipped_shares(facts: Facts, trials: Trials) -> Values:
    """Compute the share of each activation's values that its grid clips."""
    return {name: value.clipped for name, value in facts.measured.values.items()}


def shift_shares(facts: Facts, trials: Trials) -> Values:
    """Compute the share of each layer's error that is constant per channel."""
    return {
        name: shift_share_of(site.mean_error, site.square_error)
        for name, site in facts.measured.sites.items()
        if site.mean_error.size and facts.plan.sites[name].bias is not None
    }


def outlier_ratios(facts: Facts, trials: Trials) -> Values:
    """Compute how far each grid reaches beyond 99.9 % of the magnitudes of its values."""
    result = {}
    for name, value in facts.measured.values.items():
        grid = facts.plan.qparams(name)
        reach = max(-float(grid.lo.min()), float(grid.hi.max()))
        result[name] = outlier_ratio(min(reach, max(-value.lo, value.hi)), value.quantile)
    return result


def shared_grid_ratios(facts: Facts, trials: Trials) -> Values:
    """Compute how many times wider the widest value on a grid is than the narrowest."""
    result = {}
    for members in facts.plan.members().values():
        ranges = {
            name: max(-value.lo, value.hi)
            for name in members
            if (value := facts.measured.values.get(name)) is not None
        }
        used = {name: width for name, width in ranges.items() if width > 0}
        if len(used) > 1:
            narrowest = min(used, key=lambda name: (used[name], name))
            result[narrowest] = max(used.values()) / used[narrowest]
    return result


def range_growths(facts: Facts, trials: Trials) -> Values:
    """Compute the growth of each range from half of the samples to all; only with few samples."""
    if facts.settings.samples > FEW_SAMPLES:
        return {}
    return {
        name: growth(value.first, (value.lo, value.hi))
        for name, value in facts.measured.values.items()
    }


DFQ = "Nagel et al. 2019, arXiv:1906.04721"

RULES = (
    Rule(
        "activation_channel_ranges",
        activation_range_ratios,
        16,  # narrow channels have 4 bits less than wide ones
        f"{DFQ}, sec. 4.1",
        advice.equalize,
    ),
    Rule(
        "weight_channel_ranges",
        weight_range_ratios,
        16,
        f"{DFQ}, sec. 3.1; Krishnamoorthi 2018, arXiv:1806.08342, sec. 3.1",
        advice.per_channel,
    ),
    Rule(
        "weights",
        weights_share,
        0.3,
        "one part at a time: Nagel et al. 2021, arXiv:2106.08295, sec. 3.6",
        advice.repair_weights,
        general=True,
    ),
    Rule(
        "activations",
        activations_share,
        0.3,
        "one part at a time: Nagel et al. 2021, arXiv:2106.08295, sec. 3.6",
        advice.better_ranges,
        general=True,
    ),
    Rule(
        "worst_layers",
        sqnr_gaps,
        10,  # dB: ten times the noise of the median layer
        "layer by layer: Nagel et al. 2021, arXiv:2106.08295, sec. 3.6",
        advice.more_bits,
        general=True,
    ),
    Rule(
        "saturation",
        clipped_shares,
        0.01,
        "Zhao et al. 2019, arXiv:1901.09504, sec. 3: clipping pays below about 1 % of values",
        advice.wider_ranges,
    ),
    Rule("bias_shift", shift_shares, 0.5, f"{DFQ}, sec. 4.2", advice.correct_biases),
    Rule(
        "outlier",
        outlier_ratios,
        16,  # 99.9 % of the values share a sixteenth of the codes
        "Wu et al. 2020, arXiv:2004.09602, sec. 4.3; Dettmers et al. 2022, arXiv:2208.07339",
        advice.clip_outliers,
    ),
    Rule(
        "shared_grid",
        shared_grid_ratios,
        16,
        "Nagel et al. 2021, arXiv:2106.08295, sec. 2.3: one grid for the inputs of a concatenation",
        advice.separate_grids,
    ),
    Rule(
        "unconverged_ranges",
        range_growths,
        1.25,
        "Wu et al. 2020, arXiv:2004.09602, sec. 4.2",
        advice.more_samples,
    ),
)
