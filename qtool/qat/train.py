"""The training loop: labels, the float network as teacher, or both.

A run that was stopped at any moment goes on from its last finished epoch, and ends with the same
numbers as one that was not: every random choice is made from the seed and the epoch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qtool.data import Dataset
from qtool.errors import DataError, RecipeError
from qtool.files import atomic_path
from qtool.protocols import Progress, silent
from qtool.qat.augment import augmented
from qtool.qat.network import LiveNorm, QatNetwork

T = torch.Tensor
Teacher = Callable[[Mapping[str, T]], T]

# Batches over which the statistics of BatchNorm are averaged again at the end.
REESTIMATE = 50


@dataclass(frozen=True)
class Settings:
    """How to train; the recipe's ``qat`` section says what each means."""

    epochs: int
    batch: int = 128
    fixed: bool = False  # the network takes no other batch
    probabilities: bool = False  # the network ends in a Softmax
    optimizer: str = "sgd"
    lr: float = 0.01
    scale_lr: float | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.0
    clip: float | None = None
    label_smoothing: float = 0.0
    teacher: float = 1.0
    temperature: float = 1.0
    crop: int = 0
    flip: bool = False
    fill: tuple[float, ...] = (0.0,)
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One line of the history.

    Attributes:
        number: from 1; 0 is the plan before training.
        loss: mean over the epoch's batches; None before training.
        score: on the validation samples: top-1 in % with labels, else minus the loss against the
            teacher; larger is better.
    """

    number: int
    loss: float | None
    score: float
    seconds: float


def train(
    network: QatNetwork,
    teacher: Teacher,
    data: Dataset,
    validation: Dataset,
    settings: Settings,
    keep: Path,
    progress: Progress = silent,
) -> list[Epoch]:
    """Train in place; the network ends with the parameters of the best epoch on ``validation``.

    The plan before training competes too, so that training never makes the validation score worse.
    Stops at a loss that is not finite, with the best parameters so far.

    Args:
        network: what learns.
        teacher: first output of the float network for a batch of inputs.
        data: what it learns from, with labels unless ``settings.teacher`` is 1.
        validation: samples that choose the best epoch.
        settings: how.
        keep: the file of the checkpoint; read if it is there.
        progress: told about every step.

    Raises:
        DataError: the labels are not class numbers, or there is nothing to learn from.
    """
    loop = _Loop(network, teacher, data, validation, settings, progress)
    loop.resume(keep)
    for number in range(len(loop.history), settings.epochs + 1):
        if loop.diverged or not loop.epoch(number):
            break
        loop.save(keep)
    loop.finish()
    return loop.history


class _Loop:
    """One run: the optimizer, the history and the best parameters so far."""

    def __init__(
        self,
        network: QatNetwork,
        teacher: Teacher,
        data: Dataset,
        validation: Dataset,
        settings: Settings,
        progress: Progress,
    ) -> None:
        self.network, self.teacher, self.settings = network, teacher, settings
        self.data, self.validation, self.progress = data, validation, progress
        self.device = next(network.parameters()).device
        labels = data.labels
        if settings.teacher < 1 and (labels is None or labels.ndim != 1):
            raise DataError("qat: training by labels needs one class number per sample")
        # A short last batch would disturb the statistics of BatchNorm.
        self.steps = max(1, data.count // settings.batch)
        self.optimizer = _optimizer(network, settings)
        self.history: list[Epoch] = []
        self.best: dict[str, T] = {}
        self.diverged = False

    def epoch(self, number: int) -> bool:
        """Train one epoch (none for 0) and judge it; False when the loss is no number any more."""
        start, loss = time.perf_counter(), None
        if number:
            loss = self._train_one(number)
            if loss is None:
                self.diverged = True
                return False
        score = self._score()
        self.history.append(Epoch(number, loss, score, time.perf_counter() - start))
        if best_of(self.history) == number:
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        return True

    def _train_one(self, number: int) -> float | None:
        settings, network = self.settings, self.network
        random = torch.Generator().manual_seed((settings.seed << 20) + number)
        order = torch.randperm(self.data.count, generator=random).numpy()
        shuffled = self.data.take(order[: self.steps * settings.batch])
        total, done = torch.zeros((), device=self.device), 0
        network.train()
        for feeds, labels in self._batches(shuffled, random):
            for group, rate in zip(
                self.optimizer.param_groups,
                rates(settings, number - 1 + done / self.steps),
                strict=True,
            ):
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(feeds, labels)
            loss.backward()
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            self.optimizer.step()
            network.project()
            total, done = total + loss.detach(), done + 1
            at = (number - 1) * self.steps + done
            self.progress("train", at, settings.epochs * self.steps, self._news())
        mean = float(total) / done
        return mean if math.isfinite(mean) else None

    def _news(self) -> str:
        last = self.history[-1]
        loss = "" if last.loss is None else f", loss {last.loss:.3f}"
        return f"epoch {last.number}: validation {last.score:.2f}{loss}"

    def _batches(
        self, data: Dataset, random: torch.Generator | None = None
    ) -> Iterator[tuple[dict[str, T], T | None]]:
        """Inputs and class numbers on the device, augmented where ``random`` is given."""
        settings = self.settings
        with closing(data.batches(settings.batch)) as stream:  # type: ignore[type-var]
            for batch in stream:
                labels = batch.pop("label", None)
                feeds = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}
                if random is not None and (settings.crop or settings.flip):
                    feeds = {
                        k: augmented(
                            v, settings.crop, settings.flip, torch.tensor(settings.fill), random
                        )
                        for k, v in feeds.items()
                    }
                if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
                    labels = None  # the float network alone teaches and judges
                known = None if labels is None else torch.from_numpy(np.asarray(labels, np.int64))
                yield (
                    {k: v.to(self.device) for k, v in feeds.items()},
                    None if known is None else known.to(self.device),
                )

    def _loss(self, feeds: Mapping[str, T], labels: T | None) -> T:
        settings = self.settings
        out = self._scores(self.network(feeds)[self.network.outputs[0]])
        parts = []
        if settings.teacher < 1 and labels is not None:
            by_label = F.cross_entropy(out, labels, label_smoothing=settings.label_smoothing)
            parts.append((1 - settings.teacher) * by_label)
        if settings.teacher > 0:
            with torch.no_grad():
                want = self._scores(self.teacher(feeds))
            parts.append(settings.teacher * distilled(out, want, settings.temperature))
        total: T = torch.stack(parts).sum()
        return total

    def _scores(self, out: T) -> T:
        """Scores before a Softmax, up to a constant that no loss sees."""
        return out.clamp(min=1e-12).log() if self.settings.probabilities else out

    @torch.no_grad()
    def _score(self) -> float:
        self.network.eval()
        hits, loss, count, judged = 0.0, 0.0, 0, False
        data, total = self.validation, self.validation.count
        if self.settings.fixed:  # filled up with its last sample, and cut off below
            data = data.take([*range(total), *[total - 1] * (-total % self.settings.batch)])
        for feeds, labels in self._batches(data):
            out = self.network(feeds)[self.network.outputs[0]]
            rows = min(len(out), total - count)
            out, labels = out[:rows], None if labels is None else labels[:rows]
            judged = labels is not None and out.dim() == 2 and out.shape[1] > 1
            if judged:
                hits += float((out.argmax(1) == labels).sum())
            else:
                want = self._scores(self.teacher(feeds)[:rows])
                loss += float(distilled(self._scores(out), want, 1.0)) * rows
            count += rows
        return 100 * hits / count if judged else -loss / count

    def finish(self) -> None:
        """Take the best parameters; average BatchNorm's statistics again where that helps."""
        self.network.load_state_dict(self.best)
        norms = [m for m in self.network.modules() if isinstance(m, LiveNorm) and m.live]
        if not norms or len(self.history) < 2:
            return
        before = self._score()
        self._reestimate(norms)
        if self._score() < before:
            self.network.load_state_dict(self.best)
        self.network.eval()

    @torch.no_grad()
    def _reestimate(self, norms: list[LiveNorm]) -> None:
        """Running statistics become the plain mean over the batches."""
        momenta = [norm.momentum for norm in norms]
        self.network.train()
        for k, (feeds, _) in enumerate(self._batches(self.data)):
            if k == min(REESTIMATE, self.steps):
                break
            for norm in norms:
                norm.momentum = 1 / (k + 1)
            self.network(feeds)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def save(self, path: Path) -> None:
        """Everything the next epoch depends on, in one file that is whole or not there."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "history": [asdict(epoch) for epoch in self.history],
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint of the same run ends, if there is one."""
        if not path.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # a damaged archive fails in many ways
            raise RecipeError(
                f"qat: the checkpoint {path} cannot be read; start anew with --fresh"
            ) from error
        history = [Epoch(**epoch) for epoch in state["history"]]
        if len(history) - 1 > self.settings.epochs:
            raise RecipeError(
                f"qat: the checkpoint {path} has {len(history) - 1} epochs, more than the "
                f"{self.settings.epochs} asked for; ask for as many, or start anew with --fresh"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = history, state["best"]


def best_of(history: list[Epoch]) -> int:
    """Number of the epoch with the highest score, the last of equals."""
    return max(history, key=lambda epoch: (epoch.score, epoch.number)).number


def distilled(out: T, want: T, temperature: float) -> T:
    """How far from the teacher: KL divergence of scores [N, C], times T^2; else squared error.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    if out.dim() != 2 or out.shape[1] < 2:
        return F.mse_loss(out, want)
    a = F.log_softmax(out / temperature, 1)
    b = F.log_softmax(want / temperature, 1)
    return F.kl_div(a, b, reduction="batchmean", log_target=True) * temperature**2


def rates(settings: Settings, epoch: float) -> tuple[float, float, float, float]:
    """Learning rates of the four groups of parameters: a linear warm-up, then half a cosine."""
    if epoch < settings.warmup:
        share = (epoch + 1e-3) / settings.warmup
    else:
        rest = max(settings.epochs - settings.warmup, 1e-9)
        share = 0.5 * (1 + math.cos(math.pi * min((epoch - settings.warmup) / rest, 1.0)))
    scale = settings.lr / 100 if settings.scale_lr is None else settings.scale_lr
    return settings.lr * share, settings.lr * share, scale * share, scale * share


def _optimizer(network: QatNetwork, settings: Settings) -> torch.optim.Optimizer:
    """Weights decay; biases, norms and scales do not, but for the levels that say so (PACT)."""
    grids = [*network.weight_grids.values(), *network.activation_grids.values()]
    decaying = [p for g in grids if getattr(g, "decays", False) for p in g.parameters()]
    scales = [p for g in grids if not getattr(g, "decays", False) for p in g.parameters()]
    others = [*network.biases.parameters(), *network.norms.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": list(network.weights.parameters()), "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": scales, "weight_decay": 0.0},
        {"params": decaying, "weight_decay": settings.weight_decay},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
