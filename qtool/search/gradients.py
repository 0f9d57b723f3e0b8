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

# Draws of a class from the network's own probabilities, for each sample.
DRAWS = 4
# Random vectors of the trace estimate.
PROBES = 8


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
    sums = output.detach().sum(1)
    if float(output.detach().min()) >= -1e-6 and torch.allclose(
        sums, torch.ones_like(sums), atol=1e-3
    ):
        return output.clamp_min(1e-12).log()
    return output.log_softmax(1)


def hessian_estimates(context: Context, plan: QuantPlan, dataset: Dataset) -> dict[str, float]:
    """Estimate the divergence that rounding each site's weights causes, from the Hessian's trace.

        KL ~ 1/2 Tr(H) / n |W_q - W|^2,    H: of the divergence to the network's own outputs

    Source: Dong et al. 2020, HAWQ-V2, sec. 3, arXiv:1911.03852.
    Departure: the loss is the divergence to the float outputs, so that no labels are read.

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
        loss = _divergence(output)
        for name, trace in hutchinson_traces(loss, leaves, PROBES, generator).items():
            totals[name] += trace / dataset.count
    return totals


def _divergence(output: torch.Tensor) -> torch.Tensor:
    """Return the sum over samples of the divergence to the output itself: 0, with curvature."""
    if _are_classes(output):
        logs = _log_probabilities(output)
        target = logs.detach()
        return (target.exp() * (target - logs)).sum()
    power = output.detach().square().mean()
    return (output - output.detach()).square().mean() * len(output) / power


def hutchinson_traces(
    loss: torch.Tensor,
    parameters: Mapping[str, torch.Tensor],
    probes: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Estimate the trace of the Hessian of a loss for each parameter.

        Tr(H_i) = E[v_i^T (H v)_i],    v random signs

    One product with H serves all parameters: what it mixes between them has mean 0.

    Args:
        loss: a scalar with a graph.
        parameters: leaves of the graph by name.
        probes: number of random vectors.
        generator: of the signs.
    """
    tensors = list(parameters.values())
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    traces = dict.fromkeys(parameters, 0.0)
    for _ in range(probes):
        signs = [
            (torch.randint(0, 2, t.shape, generator=generator) * 2.0 - 1).to(t) for t in tensors
        ]
        pairs = zip(gradients, signs, strict=True)
        dots = [(g * v).sum() for g, v in pairs if g is not None and g.requires_grad]
        if not dots:
            return traces
        products = torch.autograd.grad(
            torch.stack(dots).sum(), tensors, retain_graph=True, allow_unused=True
        )
        for name, product, sign in zip(traces, products, signs, strict=True):
            if product is not None:
                traces[name] += float((product * sign).sum()) / probes
    return traces
