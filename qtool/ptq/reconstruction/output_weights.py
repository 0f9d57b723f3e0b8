"""Weights of a block's output elements in the squared error, from the network's final output.

Each is computed from the gradient g of the distance of the network's output to the float output,
with respect to the block's output z, at the quantized z; everything behind the block is float.
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from qtool.ptq.reconstruction.samples import Batch, channel_axis, unrounded_output
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps.distance import are_probabilities

T = torch.Tensor

LEAST_SHARE = 0.1

Gradients = Iterable[tuple[T, T]]
"""For each batch: g, and the change dz = z_quantized - z_float, both in the shape of z."""


def output_gradients(
    network: Executor, output: str, simulation: Simulation, batches: Iterable[Batch]
) -> Iterator[tuple[T, T]]:
    """Yield g and dz of each batch.

    Args:
        network: the float network.
        output: name of the output that networks are compared by.
        simulation: of the quantized network.
        batches: of the block.
    """
    for batch in batches:
        exit_name = batch.block.exit
        with torch.no_grad():
            feeds = batch.feeds(batch.entry_quantized)
            z = unrounded_output(simulation, feeds, exit_name)
            target = network({**batch.inputs, exit_name: batch.target}, None, [output])[output]
        z.requires_grad_(True)
        distance = _distance(
            network({**batch.inputs, exit_name: z}, None, [output])[output], target
        )
        # A block in front of another output of the network has no gradient of the first one.
        gradient = torch.zeros_like(z)
        if distance.requires_grad:
            (gradient,) = torch.autograd.grad(distance, z)
        yield gradient, z.detach() - batch.target


def _distance(outputs: T, target: T) -> T:
    """Return the sum over samples of KL(target, outputs) of scores [N, C], else squared errors.

    The differentiable form of :func:`qtool.steps.distance.distance`, rows that are probabilities
    included.
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return (outputs - target).square().sum()
    if are_probabilities(target.detach().cpu().numpy()):
        logs, targets = (rows.clamp(min=1e-12).log() for rows in (outputs, target))
    else:
        logs, targets = torch.log_softmax(outputs, 1), torch.log_softmax(target, 1)
    return torch.nn.functional.kl_div(logs, targets, reduction="sum", log_target=True)


def fisher(gradients: Gradients) -> Iterator[T]:
    """Yield the diagonal of the Fisher matrix for each batch: g^2, element by element.

    Source: Li et al. 2021, "BRECQ", eq. 10, arXiv:2102.05426.
    """
    for gradient, _ in gradients:
        yield gradient.square()


def least_squares(gradients: Gradients) -> Iterator[T]:
    """Yield one weight for each channel, the same for all batches: mean(g dz) / mean(dz^2).

    This is the h of least error in g ~ h dz over samples and positions, cut at 0.

    Source: LS-ViT 2026, diagonal part; that the Hessian's product with dz is g itself for this
        distance: Wu et al. 2025, "FIMA-Q", sec. 3, arXiv:2506.11543.
    Departure: no part of low rank; no channel has less than a tenth of the mean weight, since
        an output that does not matter on these samples may matter on others.
    """
    count, shape, axis = 0, [1], 0
    above = below = torch.zeros(1, dtype=torch.float64)
    for gradient, change in gradients:
        axis = channel_axis(gradient)
        others = [k for k in range(gradient.dim()) if k != axis]
        above = above + (gradient * change).double().sum(others)
        below = below + change.double().square().sum(others)
        count, shape = count + 1, [1] * gradient.dim()
    diagonal = torch.where(below > 0, above / below.clamp(min=1e-30), 0.0).clamp(min=0)
    shape[axis] = -1
    weight = (diagonal + LEAST_SHARE * diagonal.mean()).float().reshape(shape)
    for _ in range(count):
        yield weight


WEIGHTINGS: dict[str, Callable[[Gradients], Iterator[T]]] = {
    "fisher": fisher,
    "least_squares": least_squares,
}
"""Names that the option ``weighting`` of a step may have, besides none."""
