"""HAQ: the map of actions, limits, how close it comes to the exact optimum, and its seed."""

import numpy as np
import pytest
import torch

from qtool.search.haq import Haq, way_of
from qtool.search.integer_program import COST, Choice, Program
from qtool.search.mixed_precision import Problem

RNG = np.random.default_rng(2)
BITS = range(2, 9)


def convex_problem(layers=5, seed=0, rng=RNG):
    """Layers of other sizes whose cost falls by four with every bit, and adds up."""
    sizes = np.round(rng.uniform(50, 200, layers))
    noises = rng.uniform(0.2, 5, layers)
    sites = [
        [Choice({COST: noise * 4.0**-b, "bits": size * b}) for b in BITS]
        for noise, size in zip(noises, sizes, strict=True)
    ]
    program = Program(sites)
    states = [(k, noise, size) for k, (noise, size) in enumerate(zip(noises, sizes, strict=True))]
    return Problem(program, states, lambda chosen: program.amount(chosen, COST), seed), sizes


def test_an_action_means_a_width():
    widths = [BITS[way_of(action, len(BITS))] for action in (0, 0.5, 1)]
    assert widths == [2, 5, 8]
    actions = np.linspace(0, 1, 7001)
    counts = np.bincount([way_of(action, 7) for action in actions])
    assert counts.min() > 990 and len(counts) == 7


def test_it_comes_close_to_the_integer_program_within_the_limit():
    problem, sizes = convex_problem()
    limits = {"bits": 4.5 * sizes.sum()}
    chosen = Haq(episodes=100).search(problem, limits)
    best = problem.loss(problem.program.solve(limits))
    assert problem.program.amount(chosen, "bits") <= limits["bits"]
    assert best <= problem.loss(chosen) <= 1.05 * best
    # As many random networks do not come so close.
    assert problem.loss(Haq(episodes=100, warmup=100).search(problem, limits)) > 1.05 * best


@pytest.mark.slow
@pytest.mark.parametrize("draw", [100, 101, 102])
def test_its_defaults_come_close_on_any_draw(draw):
    problem, sizes = convex_problem(rng=np.random.default_rng(draw))
    limits = {"bits": 4.5 * sizes.sum()}
    best = problem.loss(problem.program.solve(limits))
    assert best <= problem.loss(Haq().search(problem, limits)) <= 1.05 * best


def test_a_seed_gives_the_same_networks_and_leaves_others_alone():
    problem, sizes = convex_problem(3)
    runs, tried = [], []
    for seed in (0, 0, 1):
        own = Problem(problem.program, problem.states, lambda c: tried.append(c) or 1.0, seed)
        state = torch.random.get_rng_state()
        Haq(episodes=8, warmup=4).search(own, {"bits": 5 * sizes.sum()})
        assert torch.equal(torch.random.get_rng_state(), state)
        runs.append(tried.copy())
        tried.clear()
    assert runs[0] == runs[1] != runs[2] and len(runs[0]) == 8


@pytest.mark.parametrize("mean", [2, 2.5, 8])
def test_every_episode_is_within_the_limit(mean):
    problem, sizes = convex_problem(4)
    limits, amounts = {"bits": mean * sizes.sum()}, []

    def loss(chosen):
        amounts.append(problem.program.amount(chosen, "bits"))
        return 1.0

    own = Problem(problem.program, problem.states, loss)
    Haq(episodes=6, warmup=4).search(own, limits)
    assert len(amounts) == 6 and max(amounts) <= limits["bits"]
    assert Haq().search(own, {"bits": 1.9 * sizes.sum()}) is None
