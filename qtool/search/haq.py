"""HAQ: an actor-critic agent chooses the width of one layer after the other, by trying networks.

An episode walks through the layers. The actor reads the state of a layer and answers with a number
in [0, 1], which means one of the layer's ways. Widths are then lowered until the limits hold, the
whole network is quantized, and its loss is the reward of every step of the episode.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from qtool.runtime.torch_threads import torch_threads
from qtool.search.mixed_precision import Problem, Solver

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
DISCOUNT = 1.0
# Step of the target networks towards the trained ones, and of the baseline towards new rewards.
TAU, BASELINE_STEP = 0.01, 0.5
BATCH = 64
# Transitions in the memory for each layer.
MEMORY = 128
FIRST_SIGMA, SIGMA_DECAY = 0.5, 0.99
SMALLEST_LOSS = 1e-12


@dataclass(frozen=True)
class Haq:
    """Let an actor-critic agent (DDPG) try whole networks within the limits.

    An episode chooses a way for each layer; widths are lowered one by one, from the last layer to
    the first, until the limits hold. The network that comes closest to the float output is taken::

        way k of n = round(-0.5 + a n),  clipped to 0 .. n - 1        a = actor(state) + noise
        R = -log(loss / mean loss of the warm-up)
        Q(s_i, a_i) -> R - baseline + Q'(s_{i+1}, mu'(s_{i+1}))

    Every episode quantizes and compares a network as `qtool ptq` would: the time is that of so many
    trials. The integer program needs one scan; this is the searching method of the literature
    beside it.

    Args:
        episodes: networks that are tried.
        warmup: first episodes, with random ways and without training.

    Source: Wang et al. 2019, sec. 3, arXiv:1811.08886; constants of the authors' code (one update a
        step, 128 transitions a layer, sigma 0.5 x 0.99^episode).
    Departure: the reward is that of the divergence on calibration samples, without labels and
        without fine-tuning, and its logarithm, since it spans decades; one action chooses the bits
        of weights and activations together.
    """

    _: KW_ONLY
    episodes: int = Field(default=600, ge=1)
    warmup: int = Field(default=20, ge=1)

    minimizes_size: ClassVar[bool] = False
    summary: ClassVar[str] = (
        "haq's agent tried whole networks, one an episode; other sizes on the front are those of "
        "an integer program"
    )

    def solvers(self, problem: Problem) -> Sequence[Solver]:
        """Return the search over one problem.

        Args:
            problem: the layers and their ways.
        """
        return [lambda limits: self.search(problem, limits)]

    def search(self, problem: Problem, limits: Mapping[str, float]) -> tuple[int, ...] | None:
        """Return the way of each layer in the best episode; None where no way fits.

        Args:
            problem: the layers and their ways.
            limits: name of an amount -> its largest sum.
        """
        walk = _Walk(problem)
        if walk.within(walk.narrowest, limits) is None:
            return None
        with torch_threads(1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed)
            rng = np.random.default_rng(problem.seed)
            agent = _Agent(walk.states.shape[1] + 1, MEMORY * max(len(walk.steps), 1), rng)
            return self._best(problem, limits, walk, agent)

    def _best(
        self, problem: Problem, limits: Mapping[str, float], walk: "_Walk", agent: "_Agent"
    ) -> tuple[int, ...]:
        best: tuple[float, tuple[int, ...]] = (np.inf, walk.narrowest)
        losses: list[float] = []
        for episode in range(self.episodes):
            sigma = FIRST_SIGMA * SIGMA_DECAY ** max(0, episode - self.warmup)
            is_random = episode < self.warmup
            states, actions = walk.episode(agent, None if is_random else sigma)
            chosen = walk.within(walk.ways(actions), limits) or walk.narrowest
            loss = problem.loss(chosen)
            losses.append(loss)
            best = min(best, (loss, chosen))
            mean = max(float(np.mean(losses[: self.warmup])), SMALLEST_LOSS)
            reward = -math.log(max(loss, SMALLEST_LOSS) / mean)
            for transition in _transitions(states, actions, reward):
                agent.remember(transition)
                if not is_random:
                    agent.update()
            problem.progress("search: episodes", episode + 1, self.episodes)
        return best[1]


@plain_dataclass(frozen=True)
class _Transition:
    """One step of an episode, with the state that follows; ``last`` where none does."""

    state: np.ndarray
    action: float
    reward: float
    following: np.ndarray
    last: bool


def _transitions(
    states: Sequence[np.ndarray], actions: Sequence[float], reward: float
) -> list[_Transition]:
    following = [*states[1:], *states[-1:]]
    return [
        _Transition(state, action, reward, after, k == len(states) - 1)
        for k, (state, action, after) in enumerate(zip(states, actions, following, strict=True))
    ]


class _Walk:
    """The layers that have several ways, as the steps of an episode."""

    def __init__(self, problem: Problem) -> None:
        self._program = problem.program
        self._counts = [len(choices) for choices in problem.program.sites]
        self.steps = [k for k, count in enumerate(self._counts) if count > 1]
        self.states = _normalized(np.array(problem.states, np.float64))[self.steps]
        self.narrowest = (0,) * len(self._counts)

    def episode(self, agent: "_Agent", sigma: float | None) -> tuple[list[np.ndarray], list[float]]:
        """Return states and actions; random ones where sigma is None."""
        states, actions, previous = [], [], 1.0
        for row in self.states:
            states.append(np.append(row, previous).astype(np.float32))
            previous = agent.act(states[-1], sigma)
            actions.append(previous)
        return states, actions

    def ways(self, actions: Sequence[float]) -> tuple[int, ...]:
        """Return the way of each layer that actions mean."""
        chosen = list(self.narrowest)
        for k, action in zip(self.steps, actions, strict=True):
            chosen[k] = way_of(action, self._counts[k])
        return tuple(chosen)

    def within(self, chosen: Sequence[int], limits: Mapping[str, float]) -> tuple[int, ...] | None:
        """Lower ways one by one, from the last layer to the first, until all limits hold."""
        lowered = list(chosen)
        while True:
            for k in (*reversed(self.steps), None):
                if self._program.allows(lowered, limits):
                    return tuple(lowered)
                if k is not None and lowered[k] > 0:
                    lowered[k] -= 1
            if not any(lowered):
                return None


def way_of(action: float, count: int) -> int:
    """Return the position of the way that an action means; steps are equally wide.

    Args:
        action: from 0 to 1.
        count: of the ways, narrowest first.
    """
    return int(np.clip(np.round(-0.5 + action * count), 0, count - 1))


def _normalized(states: np.ndarray) -> np.ndarray:
    """Return each feature scaled to 0 .. 1 over the layers."""
    low, high = states.min(0), states.max(0)
    scaled: np.ndarray = (states - low) / np.where(high > low, high - low, 1.0)
    return scaled


class _Actor(nn.Module):
    def __init__(self, states: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(states, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
            nn.Sigmoid(),
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return actions [N, 1]."""
        actions: torch.Tensor = self.layers(states)
        return actions


class _Critic(nn.Module):
    def __init__(self, states: int) -> None:
        super().__init__()
        self.of_states, self.of_actions = nn.Linear(states, HIDDEN), nn.Linear(1, HIDDEN)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )

    def forward(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return expected returns [N, 1]."""
        returns: torch.Tensor = self.layers(self.of_states(states) + self.of_actions(actions))
        return returns


class _Agent:
    """Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971)."""

    def __init__(self, states: int, memory: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._actor, self._critic = _Actor(states), _Critic(states)
        self._actor_target, self._critic_target = _Actor(states), _Critic(states)
        self._actor_target.load_state_dict(self._actor.state_dict())
        self._critic_target.load_state_dict(self._critic.state_dict())
        self._actor_step = torch.optim.Adam(self._actor.parameters(), lr=ACTOR_RATE, fused=True)
        self._critic_step = torch.optim.Adam(self._critic.parameters(), lr=CRITIC_RATE, fused=True)
        self._memory: list[_Transition] = []
        self._size = memory
        self._baseline: float | None = None

    def act(self, state: np.ndarray, sigma: float | None) -> float:
        """Return an action with noise from a normal distribution truncated to [0, 1]."""
        if sigma is None:
            return float(self._rng.uniform())
        with torch.no_grad():
            mean = float(self._actor(torch.from_numpy(state)[None]))
        while not 0 <= (action := self._rng.normal(mean, sigma)) <= 1:
            pass
        return float(action)

    def remember(self, transition: _Transition) -> None:
        """Store a transition; the oldest is dropped where the memory is full."""
        self._memory = [*self._memory, transition][-self._size :]

    def update(self) -> None:
        """Train critic and actor on one batch, and move the target networks towards them."""
        drawn = self._rng.integers(len(self._memory), size=min(BATCH, len(self._memory)))
        batch = [self._memory[k] for k in drawn]
        states = torch.from_numpy(np.stack([t.state for t in batch]))
        following = torch.from_numpy(np.stack([t.following for t in batch]))
        actions = torch.tensor([[t.action] for t in batch])
        more = torch.tensor([[float(not t.last)] for t in batch])
        rewards = torch.tensor([[t.reward] for t in batch])
        mean = float(rewards.mean())
        before = mean if self._baseline is None else self._baseline
        self._baseline = before + BASELINE_STEP * (mean - before)
        with torch.no_grad():
            after = self._critic_target(following, self._actor_target(following))
            targets = rewards - self._baseline + DISCOUNT * more * after
        loss = (self._critic(states, actions) - targets).square().mean()
        self._critic_step.zero_grad()
        loss.backward()
        self._critic_step.step()
        loss = -self._critic(states, self._actor(states)).mean()
        self._actor_step.zero_grad()
        loss.backward()
        self._actor_step.step()
        for target, source in (
            (self._actor_target, self._actor),
            (self._critic_target, self._critic),
        ):
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.data.lerp_(new.data, TAU)
