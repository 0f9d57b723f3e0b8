"""The words of each finding: what it is, its evidence, the recipe lines, and the change to try."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import qtool.diagnosis.replacements as replacements
from qtool.annotation.layer_patterns import name_pattern
from qtool.diagnosis.equalized import equalized
from qtool.diagnosis.facts import Facts
from qtool.diagnosis.trials import Replacement
from qtool.graph.queries import by_name, name_of
from qtool.ptq.bias_correction import BiasCorrection
from qtool.quant.plan import QuantPlan

Values = Mapping[str, float]

# Layers that a finding raises in bits; where more stand out, more bits for all are cheaper to say.
MAX_LAYERS = 3
LISTED = 3


@dataclass(frozen=True)
class Advice:
    """The words of one finding, and the change whose gain a trial measures.

    Attributes:
        finding: one sentence.
        evidence: one sentence with the numbers.
        lines: of the recipe.
        trial: what is replaced in the simulated network; or a plan that a step changed.
        bytes: that the change adds to the file.
        bound: whether the trial shows the most that the lines can gain.
        over: what the trial is compared with; by default the plan itself.
    """

    finding: str
    evidence: str
    lines: tuple[str, ...]
    trial: Callable[[], Mapping[str, Replacement] | QuantPlan]
    bytes: int = 0
    bound: bool = False
    over: Callable[[], Mapping[str, Replacement]] = dict


def equalize(facts: Facts, suspects: Values) -> Advice:
    """Advise on channel ranges of activations: equalization, where it was not done."""
    place, ratio = _first(suspects)
    lines = ("rewrite: [equalize]",)
    if "equalize" in facts.settings.rewrites:
        lines = ("rewrite: [smooth]",)
    return Advice(
        f"Channel ranges of activations differ {ratio:.0f}-fold, and one scale serves all channels",
        f"{_listed(suspects, '-fold')}; {_codes_left(facts, place, ratio)}",
        lines,
        lambda: equalized(facts, suspects),
    )


def per_channel(facts: Facts, suspects: Values) -> Advice:
    """Advise on channel ranges of weights with one scale: a scale for each channel."""
    place, ratio = _first(suspects)
    channels = sum(facts.measured.sites[name].weight_limits.size for name in facts.layers)
    return Advice(
        f"Channel ranges of weights differ {ratio:.0f}-fold, and one scale serves all channels",
        f"{_listed(suspects, '-fold')}; "
        f"{_codes_left(facts, facts.plan.sites[place].weight or '', ratio)}",
        ("bits: {granularity: channel}",),
        lambda: replacements.weights_per_channel(facts, facts.layers),
        bytes=4 * channels,
    )


def repair_weights(facts: Facts, suspects: Values) -> Advice:
    """Advise on rounded weights: repair steps where none ran, else more bits."""
    narrow = [name for name in facts.layers if facts.weight_bits(name) < 8]
    widths = sorted({facts.weight_bits(name) for name in narrow or facts.layers})
    width = " to ".join(str(bits) for bits in dict.fromkeys((widths[0], widths[-1]))) + " bits"
    cause = "Pruning the weights and rounding them" if facts.plan.masks else "Rounding the weights"
    part = f"{cause} to {width} costs {_percent(suspects)} of the loss"
    shown = f"with exact weights and the same activations {_percent(suspects)} of it is gone"
    stand_out = _spread(facts)
    if narrow and not facts.settings.steps:
        return Advice(
            f"{part}, and the recipe has no step that repairs it",
            f"{shown}; {stand_out}",
            ("ptq: fast",),
            lambda: replacements.exact_weights(facts, facts.layers),
            bound=True,
        )
    if narrow:
        extra = sum((8 - facts.weight_bits(n)) * facts.weight_count([n]) for n in narrow)
        return Advice(
            f"{part}, repair included",
            f"{shown}; {stand_out}",
            facts.settings.lines_of_8_bits(),
            lambda: replacements.weights_per_channel(facts, narrow, bits=8),
            bytes=ceil(extra / 8),
        )
    repaired = {"gptq", "bias_correction"} <= {*facts.settings.steps}
    return Advice(
        f"{part}, repair included" if repaired else part,
        f"{shown}; {stand_out}",
        () if repaired else ("ptq: [gptq, bias_correction]",),
        lambda: replacements.exact_weights(facts, facts.layers),
        bound=not repaired,
    )


def better_ranges(facts: Facts, suspects: Values) -> Advice:
    """Advise on rounded activations: better ranges, else more bits."""
    values = replacements.all_activations(facts)
    bits = min(facts.plan.qparams(name).spec.bits for name in values)
    lines: tuple[str, ...] = ("calibrate: {method: auto}",)
    if bits < 8:
        lines = ("bits: {activations: 8}",)
    elif facts.settings.calibrator == "auto":
        lines = ("bits: {activations: float}",)
    return Advice(
        f"Rounding the activations to {bits} bits costs {_percent(suspects)} of the loss",
        f"with exact activations and the same weights {_percent(suspects)} of it is gone; "
        f"{_spread(facts)}",
        lines,
        lambda: replacements.exact_activations(facts, values),
        bound=True,
    )


def more_bits(facts: Facts, suspects: Values) -> Advice:
    """Advise on few layers that are far worse than the others: more bits for them."""
    names = list(suspects)[:MAX_LAYERS]
    narrow = all(facts.weight_bits(name) < 8 for name in names)
    count = "One layer is" if len(names) == 1 else f"{len(names)} layers are"
    more = {name: 8 - facts.weight_bits(name) if narrow else 24 for name in names}
    extra = sum(bits * facts.weight_count([name]) for name, bits in more.items())
    sites = [facts.plan.sites[name] for name in names]
    read = [v for site in sites for v in (site.inputs[0], site.output) if v in facts.plan.grid_of]

    def trial() -> Mapping[str, Replacement]:
        if narrow:
            return replacements.weights_per_channel(facts, names, bits=8)
        return {
            **replacements.exact_weights(facts, names),
            **replacements.exact_activations(facts, read),
        }

    width = "8" if narrow else "float"
    listed = ", ".join(f"{n} {facts.measured.sites[n].sqnr_db:.1f} dB" for n in names)
    return Advice(
        f"{count} far noisier than the others",
        f"{listed}: {suspects[names[0]]:.0f} dB below the median layer",
        (
            "bits:",
            f"  layers: {facts.settings.layer_line({name_pattern(name): width for name in names})}",
        ),
        trial,
        bytes=ceil(extra / 8),
    )


def wider_ranges(facts: Facts, suspects: Values) -> Advice:
    """Advise on clipped activations: ranges over all values."""
    place, share = _first(suspects)
    measured = facts.measured.values
    return Advice(
        "Grids of activations are too narrow: values saturate",
        f"{100 * share:.2g} % of {place} lies outside its grid; {len(suspects)} "
        f"{'activation clips' if len(suspects) == 1 else 'activations clip'} 1 % or more",
        ("calibrate: {method: minmax}",),
        lambda: replacements.on_limits(
            facts, {name: (measured[name].lo, measured[name].hi) for name in suspects}
        ),
    )


def correct_biases(facts: Facts, suspects: Values) -> Advice:
    """Advise on errors that are constant per channel: corrected biases."""
    place, share = _first(suspects)
    steps = [*facts.settings.steps, "bias_correction"]
    return Advice(
        "Rounding shifts the mean of layers, which a bias can take back",
        f"{100 * share:.0f} % of the error of {place} is a constant in each channel; so in "
        f"{len(suspects)} of {len(facts.layers)} layers for half or more",
        (f"ptq: [{', '.join(dict.fromkeys(steps))}]",),
        lambda: BiasCorrection()(facts.calibrated, facts.context).plan,
    )


def clip_outliers(facts: Facts, suspects: Values) -> Advice:
    """Advise on ranges that follow few outliers or a sentinel: a quantile as the limit."""
    place, ratio = _first(suspects)
    value = facts.measured.values[place]
    limits = {
        name: (max(v.lo, -v.quantile), min(v.hi, v.quantile))
        for name in suspects
        for v in [facts.measured.values[name]]
    }
    return Advice(
        "A range follows few outliers or a sentinel, and the other values share few codes",
        f"{place} reaches {max(value.hi, -value.lo, key=abs):.4g}, 99.9 % of it lies within "
        f"{value.quantile:.4g}: {ratio:.0f} times less",
        ("calibrate: {method: {percentile: {q: 0.999}}}",),
        lambda: replacements.on_limits(facts, limits),
    )


def separate_grids(facts: Facts, suspects: Values) -> Advice:
    """Advise on values of different size on one grid: what joins and reads them in floats."""
    place, ratio = _first(suspects)
    measured = facts.measured.values
    members = facts.plan.members()[facts.plan.grid_of[place]]
    widest = max(
        (name for name in members if name in measured),
        key=lambda name: max(-measured[name].lo, measured[name].hi),
    )
    joins, joined = _joined(facts, members)
    readers = [
        site
        for site in facts.plan.sites.values()
        if not joined.isdisjoint(site.inputs) and site.output not in joined
    ]
    layers = [*joins, *(site.name for site in readers)]
    if not joins:
        producer = by_name(facts.context.model.graph)[place].producer()
        layers = [place if producer is None else name_of(producer)]
    weighted = [site.name for site in readers if site.weight is not None]
    extra = sum((32 - facts.weight_bits(name)) * facts.weight_count([name]) for name in weighted)
    separate = {
        name: (measured[name].lo, measured[name].hi)
        for name in members
        if name in measured and name not in joined
    }
    return Advice(
        f"Values whose ranges differ {ratio:.0f}-fold share one grid",
        f"{place} reaches {max(-measured[place].lo, measured[place].hi):.4g}, {widest} "
        f"{max(-measured[widest].lo, measured[widest].hi):.4g}",
        (
            "bits:",
            f"  layers: {facts.settings.layer_line({name_pattern(n): 'float' for n in layers})}",
        ),
        lambda: {
            **replacements.on_limits(facts, separate),
            **replacements.exact_weights(facts, weighted),
        },
        bytes=ceil(extra / 8),
    )


def more_samples(facts: Facts, suspects: Values) -> Advice:
    """Advise on ranges that still grow with every sample: more calibration samples."""
    place, factor = _first(suspects)
    measured = facts.measured.values
    return Advice(
        "Ranges have not converged: there are too few calibration samples",
        f"from half of the samples to all of them the range of {place} grows {factor:.2f}-fold; "
        f"{len(suspects)} of {len(measured)} ranges grow by a quarter or more; "
        f"{facts.settings.samples} samples; the gain is what the second half of them gained",
        (f"calibrate: {{count: {max(256, 4 * facts.settings.samples)}}}",),
        lambda: replacements.on_limits(
            facts, {name: (measured[name].lo, measured[name].hi) for name in suspects}
        ),
        over=lambda: replacements.on_limits(
            facts, {name: measured[name].first for name in suspects}
        ),
    )


def _joined(facts: Facts, members: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the Concats that write values of a grid, and these values with those behind them."""
    joins, joined = [], set[str]()
    for node in facts.context.model.graph:
        read = {value.name for value in node.inputs if value is not None}
        written = {value.name or "" for value in node.outputs}.intersection(members)
        if node.op_type == "Concat" and written:
            joins.append(name_of(node))
            joined |= written
        elif not read.isdisjoint(joined):
            joined |= written
    return joins, joined


def _first(suspects: Values) -> tuple[str, float]:
    return next(iter(suspects.items()))


def _listed(suspects: Values, unit: str) -> str:
    first = list(suspects.items())[:LISTED]
    more = f" and {len(suspects) - LISTED} more" if len(suspects) > LISTED else ""
    return ", ".join(f"{name} {value:.0f}{unit}" for name, value in first) + more


def _codes_left(facts: Facts, value: str, ratio: float) -> str:
    codes = max(1, round(2 ** facts.plan.qparams(value).spec.bits / ratio))
    return f"the narrowest has {codes} {'code' if codes == 1 else 'codes'}"


def _percent(suspects: Values) -> str:
    return f"{100 * _first(suspects)[1]:.0f} %"


def _spread(facts: Facts) -> str:
    """Say whether one layer or many are noisy."""
    noise = sorted(site.sqnr_db for site in facts.measured.sites.values())
    if not noise:
        return "no layer has weights"
    low, median = noise[0], noise[len(noise) // 2]
    if low < median - 10:
        return f"the noisiest layer has {low:.1f} dB, the median {median:.1f} dB"
    return f"no layer stands out: the noisiest has {low:.1f} dB, the median {median:.1f} dB"
