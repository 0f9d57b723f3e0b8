"""Estimate the cost of sites from gradients of the float network, without quantizing it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.data import Dataset
from qtool.graph.queries import by_name
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.runtime.executor import Executor
from qtool.runtime.tensors import from_numpy
from qtool.search.partial_network import PartialNetwork
from qtool.simulation.fake_quant import Simulation
from qtool.steps.context import Context
from qtool.steps.distance import are_probabilities

# Draws of a class from the network's own probabilities, for each sample.
DRAWS = 4
# Random vectors of the trace estimate.
PROBES = 8
SMALLEST_PROBABILITY = 1e-12


def fisher_estimates(context: Context, plan: QuantPlan, dataset: Dataset) -> dict[str, float]:
    """Estimate the divergence that each site causes, from the diagonal of the Fisher information.

    With z the output of a site, dz its change by quantization, and y drawn from the network's own
    softmax p::

        KL ~ 1/2 mean_n sum_i E_y[(d log p_y / d z_i)^2] dz_i^2

    For outputs that are no class scores, log p_y is a random projection of the output, and the sum
    is relative to the output's power.

    Source: Theis et al. 2018, sec. 3.1, arXiv:1801.05787.
    Departure: at the outputs of sites, so that rounded activations count as well as weights.

    Args:
        context: the float network.
        plan: every grid is calibrated.
        dataset: calibration samples.

    Returns:
        Name of the site -> estimate; sites without a gradient are absent.
    """
    network = PartialNetwork(context, plan)
    generator = torch.Generator().manual_seed(context.seed)
    totals: dict[str, float] = {}
    power = samples = 0.0
    classes = True
    for feeds, valid in context.feeds(dataset):
        values: Mapping[str, torch.Tensor] = {
            name: torch.as_tensor(array) for name, array in feeds.items()
        }
        changes = _changes(network, values)
        squares, output = _squared_gradients(context, values, list(changes), generator)
        classes = _are_classes(output)
        samples += valid
        power += float(context.samples_of(output, valid).square().sum())
        for name, change in changes.items():
            if name in squares:
                product = context.without_padding(squares[name] * change**2, valid)
                totals[name] = totals.get(name, 0.0) + float(product.sum())
    scale = 0.5 / samples if classes else 1 / (power or 1.0)
    by_output = {name: unit for unit in network.units for name in unit.outputs}
    estimates: dict[str, float] = {}
    for name, total in totals.items():
        unit = by_output[name].name
        estimates[unit] = estimates.get(unit, 0.0) + scale * total
    return estimates


def _changes(
    network: PartialNetwork, values: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return by how much quantizing each unit alone changes its outputs."""
    changes = {}
    for unit in network.units:
        before = network.before(values, unit)
        outputs = network.outputs(before, unit, None)
        rounded = network.outputs(before, unit, "both")
        changes.update({name: rounded[name] - outputs[name] for name in outputs})
        values = network.behind(before, unit, outputs)
    return changes


def _squared_gradients(
    context: Context,
    feeds: Mapping[str, torch.Tensor],
    names: Sequence[str],
    generator: torch.Generator,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the mean squared gradient of random scores by value, and the network's output."""
    leaves: dict[str, torch.Tensor] = {}
    requested = set(names)

    def observe(value: ir.Value, tensor: Any) -> Any:
        if value.name not in requested or not tensor.is_floating_point():
            return tensor
        # Zeros that are added carry the gradient; the value itself keeps its own history.
        leaf = leaves[value.name] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + leaf

    last = context.first_output
    output = Executor(context.model, context.device)(feeds, observe, [last])[last]
    squares: dict[str, torch.Tensor] = {}
    if not output.requires_grad:
        return squares, output
    for _ in range(DRAWS):
        score = _random_score(output, generator)
        gradients = torch.autograd.grad(
            score, list(leaves.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                squares[name] = squares.get(name, 0.0) + gradient.square() / DRAWS
    return squares, output.detach()


def _are_classes(output: torch.Tensor) -> bool:
    return output.dim() == 2 and output.shape[1] > 1


def _random_score(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the log-probability of classes drawn from the output, or a random projection of it."""
    if not _are_classes(output):
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
        return (output * signs.to(output)).sum()
    logs = _log_probabilities(output)
    drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator)
    return logs.gather(1, drawn.to(logs.device)).sum()


def _log_probabilities(output: torch.Tensor) -> torch.Tensor:
    """Return the log-softmax, or the logarithm of rows that are probabilities already."""
    if are_probabilities(output.detach().cpu().numpy()):
        return output.clamp_min(SMALLEST_PROBABILITY).log()
    return output.log_softmax(1)


def hessian_estimates(context: Context, plan: QuantPlan, dataset: Dataset) -> dict[str, float]:
    """Estimate the divergence that rounding each site's weights causes, from the Hessian's trace.

        KL ~ 1/2 Tr(H) / n |W_q - W|^2,    H: of the divergence to the network's own outputs

    Source: Dong et al. 2020, HAWQ-V2, sec. 3, arXiv:1911.03852.
    Departure: the loss is the divergence to the float outputs, so that no labels are read; random
        signs at the output instead of the weights, see :func:`gauss_newton_traces`.

    Args:
        context: the float network.
        plan: every grid is calibrated.
        dataset: calibration samples.

    Returns:
        Name of the site -> estimate; sites without weights or gradient are absent.
    """
    units = [unit for unit in PartialNetwork(context, plan).units if unit.weights]
    frozen = freeze(context.model, plan)
    simulation, values = Simulation(context.model, frozen), by_name(context.model.graph)
    leaves: dict[str, torch.Tensor] = {}
    noise: dict[str, float] = {}
    for unit in units:
        name = unit.weights[0]
        original = values[name].const_value
        if original is None:
            continue
        leaf = from_numpy(np.array(original.numpy(), np.float32)).to(context.device)
        rounded = simulation.observe(values[name], leaf)
        noise[name] = float((rounded - leaf).square().sum())
        leaves[name] = leaf.requires_grad_()
    traces = _weight_traces(context, dataset, leaves)
    return {
        unit.name: 0.5 * traces[name] / leaves[name].numel() * noise[name]
        for unit in units
        if (name := unit.weights[0]) in traces
    }


def _weight_traces(
    context: Context, dataset: Dataset, leaves: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """Return the trace of the Hessian of the mean divergence, by weight."""
    generator = torch.Generator().manual_seed(context.seed)
    run, last = Executor(context.model, context.device), context.first_output
    totals = dict.fromkeys(leaves, 0.0)

    def observe(value: ir.Value, tensor: Any) -> Any:
        return leaves.get(value.name or "", tensor)

    for feeds, valid in context.feeds(dataset):
        output = context.samples_of(run(feeds, observe, [last])[last], valid)
        probes = [_root_of_curvature(output, generator) for _ in range(PROBES)]
        for name, trace in gauss_newton_traces(output, leaves, probes).items():
            totals[name] += trace / dataset.count
    return totals


def _root_of_curvature(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return S u: u random signs, S S^T the Hessian of the divergence, summed over samples, to z.

    The divergence is that of an output z to itself.
    """
    z = output.detach()
    signs = (torch.randint(0, 2, z.shape, generator=generator) * 2.0 - 1).to(z)
    if not _are_classes(z):
        return signs * (2 * len(z) / (z.numel() * z.square().mean())).sqrt()
    if are_probabilities(z.cpu().numpy()):  # S = diag(p)^-1/2
        return torch.where(z > SMALLEST_PROBABILITY, signs / z.clamp_min(1e-30).sqrt(), 0.0)
    p = z.softmax(1)  # S = diag(p)^1/2 - p (p^1/2)^T,  S S^T = diag(p) - p p^T
    root = p.sqrt()
    return root * signs - p * (root * signs).sum(1, keepdim=True)


def gauss_newton_traces(
    output: torch.Tensor,
    parameters: Mapping[str, torch.Tensor],
    probes: Sequence[torch.Tensor],
) -> dict[str, float]:
    """Estimate the trace of the Gauss-Newton matrix of a loss for each parameter.

        Tr(J^T S S^T J) = E |J^T S u|^2,    u random signs,  J = d output / d parameter

    It is the Hessian where the loss has its minimum at the output, as a divergence to itself has:
    the curvature of the network counts with the gradient of the loss, which is 0. So one gradient
    does what takes a product with the Hessian otherwise, and a network of ReLUs is no exception.

    Args:
        output: with a graph.
        parameters: leaves of the graph by name.
        probes: S u for several u, of the output's shape.
    """
    tensors = list(parameters.values())
    traces = dict.fromkeys(parameters, 0.0)
    for probe in probes:
        gradients = torch.autograd.grad(
            output, tensors, probe, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                traces[name] += float(gradient.square().sum()) / len(probes)
    return traces
