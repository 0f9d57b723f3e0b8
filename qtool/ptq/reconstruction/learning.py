"""Learn one block by gradient descent on the error of its output."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from qtool.ptq.reconstruction.block_network import BlockNetwork
from qtool.ptq.reconstruction.rounding import Annealing
from qtool.ptq.reconstruction.samples import Batch, channel_axis

T = torch.Tensor

Draw = Callable[[int], tuple[Batch, T | None]]
"""Returns a batch by its number, and the weights of its output elements, None where all are 1."""

MEASURED_STEPS = 3


@dataclass(frozen=True)
class Schedule:
    """Iterations and rates of the learning of one block.

    Attributes:
        iterations: steps of Adam.
        lr: of the weights' rounding, per step, in units of codes (of V for soft rounding).
        scale_lr: of the logarithms of scales, and of biases in units of their own; it falls to 0
            along a cosine.
        regularization: factor on the regularizer of soft rounding, lambda.
        annealing: of the regularizer.
    """

    iterations: int
    lr: float
    scale_lr: float
    regularization: float
    annealing: Annealing = field(default_factory=Annealing)


def learn_block(
    network: BlockNetwork, draw: Draw, order: Iterator[int], schedule: Schedule
) -> None:
    """Minimize the block's error in place.

    ::

        loss = mean over samples and positions of v sum_c w_c (y_c - y_float_c)^2  +  lambda R(V)

    y is the output of the quantized block; v are the weights of positions, by their power in the
    float network (:func:`qtool.steps.row_weights.row_weights`). Where activations are left
    unrounded at random, so are the elements of the entry: those take their value in the float
    network.

    Args:
        network: the block.
        draw: returns a batch by its number, and w.
        order: yields the number of the batch of each step.
        schedule: of the steps.
    """
    rounding = network.roundings()
    groups = [
        *({"params": [w.v], "lr": schedule.lr, "anneals": w.anneals} for w in rounding),
        {"params": network.scales_and_biases(), "lr": schedule.scale_lr, "anneals": True},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    rates = [group["lr"] for group in optimizer.param_groups]
    for k in range(schedule.iterations):
        share = k / schedule.iterations
        cosine = (1 + math.cos(math.pi * share)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (cosine if group["anneals"] else 1.0)
        optimizer.zero_grad(set_to_none=True)
        loss = block_loss(network, *draw(next(order)))
        beta = schedule.annealing.beta(share)
        if beta is not None:
            loss = loss + schedule.regularization * network.regularizer(beta)
        loss.backward()
        optimizer.step()


def block_loss(network: BlockNetwork, batch: Batch, weight: T | None = None) -> T:
    """Compute the squared error of the block's output: sum over channels, mean over the rest.

    Args:
        network: the block.
        batch: its ends.
        weight: of the output's elements, broadcasts against them.
    """
    entry = batch.entry_quantized
    if entry is not None and batch.entry_float is not None:
        entry = network.drop(entry, batch.entry_float)
    error = (network(batch.feeds(entry))[batch.part] - batch.target).square() * batch.weights
    if weight is not None:
        error = error * weight
    return error.sum(channel_axis(error)).mean() if error.dim() else error


def random_order(batches: range, seed: int) -> Iterator[int]:
    """Yield the numbers of all batches in random order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (int(k) for k in rng.permutation(batches))


def within_time(
    make: Callable[[], BlockNetwork], draw: Draw, schedule: Schedule, seconds: float
) -> Schedule:
    """Return the schedule with as many iterations as the time allows, from a measured step.

    The number is rounded down to 1, 2, 3, 4, 6, 8, 12, ..., so that runs on one machine
    seldom differ.

    Args:
        make: returns the block's network; it is thrown away.
        draw: returns a batch by its number.
        schedule: with the largest number of iterations.
        seconds: for this block.
    """
    network, order = make(), iter([0] * (MEASURED_STEPS + 1))
    trial = replace(schedule, iterations=1)
    learn_block(network, draw, order, trial)  # the first step prepares
    start = time.perf_counter()
    learn_block(network, draw, order, replace(trial, iterations=MEASURED_STEPS))
    step = (time.perf_counter() - start) / MEASURED_STEPS
    return replace(schedule, iterations=min(schedule.iterations, rounded_down(seconds / step)))


def rounded_down(count: float) -> int:
    """Return the largest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not above; 1 at least."""
    if count < 2:
        return 1
    power = 2 ** math.floor(math.log2(count))
    return int(power * 3 // 2 if count >= 1.5 * power else power)
