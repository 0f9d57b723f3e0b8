"""Build the replacements of trials: values exact, per channel, on other limits, or shifted."""

from collections.abc import Iterable, Mapping

import torch

from qtool.calibration.collect import observed_values
from qtool.diagnosis.facts import Facts
from qtool.diagnosis.trials import Replacement, exact
from qtool.graph.queries import by_name, nodes_by_name, weight_axis
from qtool.quant.primitives import (
    PerChannel,
    QuantParams,
    QuantSpec,
    fake_quantize,
    params_from_range,
)


def exact_weights(facts: Facts, sites: Iterable[str]) -> dict[str, Replacement]:
    """Return the weights and biases of layers as they are in the float network.

    Args:
        facts: of the run.
        sites: names of layers.
    """
    chosen = [facts.plan.sites[name] for name in sites]
    return {name: exact for site in chosen for name in (site.weight, site.bias) if name}


def exact_activations(facts: Facts, values: Iterable[str]) -> dict[str, Replacement]:
    """Return activations as they are in the float network, with all on the same grids.

    Args:
        facts: of the run.
        values: names of activations.
    """
    grids = {facts.plan.grid_of[value] for value in values}
    members = facts.plan.members()
    return {name: exact for grid in grids for name in members[grid]}


def all_activations(facts: Facts) -> tuple[str, ...]:
    """Return the names of all activations whose statistics determine a grid."""
    return observed_values(facts.context.model, facts.plan)


def unrounded(facts: Facts) -> dict[str, Replacement]:
    """Return all activations as they are in floats, and the weights of the plan unrounded.

    Args:
        facts: of the run.
    """
    names = exact_weights(facts, facts.layers)
    weights = {name: _constant(_float_weight(facts, name)) for name in names}
    return {**exact_activations(facts, all_activations(facts)), **weights}


def weights_per_channel(
    facts: Facts, sites: Iterable[str], bits: int | None = None
) -> dict[str, Replacement]:
    """Return weights rounded to nearest with a scale for each output channel.

    Args:
        facts: of the run.
        sites: names of layers.
        bits: of the weights; None: their own.
    """
    nodes, result = nodes_by_name(facts.context.model.graph), exact_weights(facts, sites)
    for name in sites:
        weight, axis = facts.plan.sites[name].weight or "", weight_axis(nodes[name])
        spec = facts.plan.qparams(weight).spec
        own = QuantSpec(bits or spec.bits, spec.signed, spec.symmetric, PerChannel(axis))
        rounded = _per_channel(own, axis)
        if weight in facts.plan.masks:  # more bits do not bring pruned weights back
            rounded = _constant(rounded(_float_weight(facts, weight)))
        result[weight] = rounded
    return result


def on_limits(facts: Facts, limits: Mapping[str, tuple[float, float]]) -> dict[str, Replacement]:
    """Return activations on grids of their bits over other limits.

    Args:
        facts: of the run.
        limits: activation -> lower and upper limit.
    """
    result = exact_activations(facts, limits)
    for name, (lo, hi) in limits.items():
        result[name] = _rounded(params_from_range(lo, hi, facts.plan.qparams(name).spec))
    return result


def _float_weight(facts: Facts, name: str) -> torch.Tensor:
    """Return a weight of the plan before it is rounded: adjusted, pruned or trained."""
    value = by_name(facts.context.model.graph)[name]
    return torch.as_tensor(facts.plan.weight(name, value).astype("float32"))


def _constant(array: torch.Tensor) -> Replacement:
    return lambda tensor: array.to(tensor)


def _rounded(grid: QuantParams) -> Replacement:
    return lambda tensor: fake_quantize(tensor, grid)


def _per_channel(spec: QuantSpec, axis: int) -> Replacement:
    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.detach().movedim(axis, 0).flatten(1)
        lo, hi = flat.amin(1).cpu().numpy(), flat.amax(1).cpu().numpy()
        return torch.as_tensor(fake_quantize(tensor, params_from_range(lo, hi, spec)))

    return rounded
