"""The training loop: labels, the float network as teacher, or both.

A run that was stopped at any moment goes on from its last finished epoch, and ends with the same
numbers as one that was not: every random choice is made from the seed and the epoch.
"""

import io
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qtool.data import Dataset
from qtool.errors import DataError, RecipeError
from qtool.files import atomic_path
from qtool.progress import Progress, silent
from qtool.qat import distributed
from qtool.qat.augmentation.augment import augmented
from qtool.qat.augmentation.mixup import Pairs
from qtool.qat.ema import Average, copied
from qtool.qat.fake_quant_model import LiveNorm, QatNetwork
from qtool.qat.loss import Loss, Teacher, are_classes, valid_labels
from qtool.qat.memory import reused_memory
from qtool.qat.optimizer import build_optimizer, default_clip, rates
from qtool.qat.oscillation import Oscillations
from qtool.qat.settings import Epoch, Settings, best_of
from qtool.qat.tensorboard_log import Board, recorded

T = torch.Tensor

# Batches over which the statistics of BatchNorm are averaged again at the end.
REESTIMATE = 50
# An epoch whose loss is so many times that of the first one, with a network worse than before
# training, learns nothing any more.
DIVERGED = 2.0
# Steps between looks at the loss: on a GPU a look waits for it.
LOOK = 50


def train(
    network: QatNetwork,
    teacher: Teacher,
    data: Dataset,
    validation: Dataset,
    settings: Settings,
    keep: Path,
    progress: Progress = silent,
    board: Path | None = None,
) -> tuple[list[Epoch], float | None]:
    """Train in place; the network ends with the parameters of the best epoch on ``validation``.

    The plan before training competes too, so that training never makes the validation score worse.
    Stops, with the best parameters so far, at a loss that is not finite, or at one twice that of
    the first epoch with a score below that of the plan before training.

    With ``settings.ema`` the moving average is judged and kept in place of the network itself.

    Several processes (:mod:`qtool.qat.distributed`) train as one does: each takes its rows of every
    batch, and the first alone judges and writes. (Mixed images are of one process's rows.)

    Args:
        network: what learns.
        teacher: values of the float network for a batch of inputs.
        data: what it learns from, with labels unless ``settings.teacher`` is 1.
        validation: samples that choose the best epoch.
        settings: how.
        keep: the file of the checkpoint; read if it is there.
        progress: told about every step.
        board: folder for TensorBoard's event files; None: none are written.

    Returns:
        The epochs judged, the plan before training first, and the float network's score on the
        same samples; None where the score is not top-1.

    Raises:
        DataError: the labels are not class numbers, or there is nothing to learn from.
    """
    loop = _Loop(network, teacher, data, validation, settings, progress)
    loop.resume(keep)
    loop.float_score = distributed.share(loop.score_float)
    with (
        reused_memory(),
        recorded(board, loop.history, loop.steps, settings) as loop.board,
    ):
        for number in range(len(loop.history), settings.epochs + 1):
            if loop.diverged or not loop.epoch(number):
                break
            if distributed.rank() == 0:
                loop.save(keep)
        loop.finish()
    return loop.history, loop.float_score


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
        self.network, self.settings = network, settings
        self.loss = Loss(network, teacher, settings)
        self.data, self.validation, self.progress = data, validation, progress
        self.device = next(network.parameters()).device
        labels = data.labels
        by_class = settings.teacher < 1 and settings.loss is None
        if by_class and (labels is None or labels.ndim != 1):
            raise DataError("qat: training by labels needs one class number per sample")
        # A short last batch would disturb the statistics of BatchNorm.
        self.steps = max(1, data.count // settings.batch)
        batch = min(settings.batch, data.count)
        mine = slice(distributed.rank(), None, distributed.count())
        self.part, self.rows = (batch, mine), len(range(batch)[mine])
        self.share = self.rows / batch
        distributed.share_tensors(network.state_dict().values())
        self.optimizer = build_optimizer(network, settings)
        asked, ema = settings.oscillation, settings.ema
        self.oscillations = None if asked is None else Oscillations(network, asked)
        self.average = None if ema is None else Average(network, ema)
        self.clip = default_clip(network) if settings.clip is None else settings.clip
        self.history: list[Epoch] = []
        self.best: dict[str, T] = {}
        self.float_score: float | None = None
        self.board: Board | None = None
        self.diverged = False

    def epoch(self, number: int) -> bool:
        """Train one epoch (none for 0) and judge it; False when training has diverged."""
        start, loss = time.perf_counter(), None
        if number:
            loss = self._train_one(number)
            if loss is None:
                self.diverged = True
                return False
        shares = self.oscillations.shares() if self.oscillations and number else (None, None)
        with self._judged():
            score = distributed.share(self._score)
            self.diverged = not math.isfinite(score) or self._rises(loss, score)
            if self.diverged and number:
                return False
            if self.diverged:
                raise DataError(
                    "qat: the calibrated network gives no numbers for the held-out samples"
                )
            self.history.append(Epoch(number, loss, score, time.perf_counter() - start, *shares))
            if self.board is not None:
                self.board.epoch(self.history[-1])
            if best_of(self.history) == number:
                self.best = copied(self.network)
        return True

    def _rises(self, loss: float | None, score: float) -> bool:
        """Whether an epoch ended far above the loss of the first and below the plan's score."""
        first = self.history[1].loss if len(self.history) > 1 else None
        if loss is None or first is None or score >= self.history[0].score:
            return False
        return loss > DIVERGED * first > 0

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Within, the network is the one that may be kept: its average, if there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place_of(self.network):
            if self.oscillations is not None:
                self.oscillations.hold()  # the averages still remember weights before freezing
            yield

    def _train_one(self, number: int) -> float | None:
        settings, network = self.settings, self.network
        random = self._random(number)
        lessons = self._mine(self._order(random))
        torch.manual_seed(random.initial_seed())  # for a loss that draws numbers
        total, done = torch.zeros((), device=self.device), 0
        network.train()
        for feeds, labels in self._lessons(lessons, random):
            at = number - 1 + done / self.steps
            for group, rate in zip(self.optimizer.param_groups, rates(settings, at), strict=True):
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            # A mean over this process's rows; all of them sum to that over the batch.
            loss = self.loss(feeds, labels) * self.share
            self._with_dampening(loss, at / settings.epochs).backward()
            loss = distributed.add_up_gradients(network.parameters(), loss.detach())
            if self.oscillations is not None:
                self.oscillations.take_gradients()
            if self.clip:
                nn.utils.clip_grad_norm_(network.parameters(), self.clip)
            self.optimizer.step()
            network.project()
            total, done = total + loss, done + 1
            steps = (number - 1) * self.steps + done
            self._observe_step(steps)
            if done % LOOK == 0 and not math.isfinite(float(total)):
                return None
            if self.board is not None:
                self.board.step(steps, loss)
            self.progress("train", steps, settings.epochs * self.steps, self._news())
        mean = float(total) / done
        return mean if math.isfinite(mean) else None

    def _with_dampening(self, loss: T, share: float) -> T:
        """The loss and this process's part of what holds oscillations back."""
        dampening = None if self.oscillations is None else self.oscillations.dampening(share)
        return loss if dampening is None else loss + dampening * self.share

    def _observe_step(self, steps: int) -> None:
        """After so many optimizer steps since training began."""
        if self.oscillations is not None:
            self.oscillations.step(steps / (self.settings.epochs * self.steps))
        if self.average is not None:
            self.average.step(self.network, steps)

    def _news(self) -> str:
        last = self.history[-1]
        loss = "" if last.loss is None else f", loss {last.loss:.3f}"
        wanted = "" if self.float_score is None else f" (float {self.float_score:.2f})"
        return f"epoch {last.number}: validation {last.score:.2f}{wanted}{loss}"

    def _random(self, number: int) -> torch.Generator:
        """The source of every choice of one epoch."""
        return torch.Generator().manual_seed((self.settings.seed << 20) + number)

    def _order(self, random: torch.Generator) -> np.ndarray:
        return torch.randperm(self.data.count, generator=random).numpy()

    def _mine(self, order: np.ndarray) -> Dataset:
        """This process's rows of every whole batch, the samples being in this order."""
        whole = order[: self.steps * self.part[0]].reshape(self.steps, -1)
        return self.data.take(whole[:, self.part[1]].ravel())

    def _read(self, data: Dataset, size: int) -> Iterator[tuple[dict[str, T], T | None]]:
        """Inputs and class numbers, on the CPU."""
        with closing(data.batches(size)) as stream:  # type: ignore[type-var]
            for batch in stream:
                labels = batch.pop("label", None)
                feeds = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}
                yield feeds, valid_labels(labels, self.settings.loss is not None)

    def _batches(self, data: Dataset, size: int) -> Iterator[tuple[dict[str, T], T | None]]:
        """Inputs and class numbers on the device."""
        for feeds, labels in self._read(data, size):
            yield self._moved(feeds), None if labels is None else labels.to(self.device)

    def _lessons(
        self, data: Dataset, random: torch.Generator
    ) -> Iterator[tuple[dict[str, T], T | Pairs | None]]:
        """Inputs, changed at random, and class numbers on the device."""
        for feeds, labels in self._read(data, self.rows):
            changed, known = augmented(feeds, labels, self.settings, random, self.part)
            yield self._moved(changed), None if known is None else known.to(self.device)

    def _moved(self, feeds: dict[str, T]) -> dict[str, T]:
        return {k: v.to(self.device) for k, v in feeds.items()}

    def _held_out(self) -> Iterator[tuple[dict[str, T], T | None, int]]:
        """Inputs of a batch, labels of its first rows, and how many these are; the rest fills."""
        data, total, count = self.validation, self.validation.count, 0
        if self.settings.fixed:  # filled up with its last sample
            data = data.take([*range(total), *[total - 1] * (-total % self.settings.batch)])
        for feeds, labels in self._batches(data, self.settings.batch):
            rows = min(len(next(iter(feeds.values()))), total - count)
            yield feeds, None if labels is None else labels[:rows], rows
            count += rows

    @torch.no_grad()
    def _score(self) -> float:
        self.network.eval()
        hits, loss, judged = 0, 0.0, False
        for feeds, labels, rows in self._held_out():
            found = self.network(feeds)
            out = found[self.network.outputs[0]][:rows]
            judged = are_classes(labels, out)
            if judged:
                hits += _hits(out, labels)
            else:
                loss += self.loss.distance(feeds, found, labels, rows) * rows
        return (100 * hits if judged else -loss) / self.validation.count

    @torch.no_grad()
    def score_float(self) -> float | None:
        """Top-1 of the float network in %; None where labels or outputs are no classes."""
        hits = 0
        for feeds, labels, rows in self._held_out():
            out = self.loss.wanted(feeds)[:rows]
            if not are_classes(labels, out):
                return None
            hits += _hits(out, labels)
        return 100 * hits / self.validation.count

    def finish(self) -> None:
        """Take the best parameters; average BatchNorm's statistics again where that helps."""
        self.network.load_state_dict(self.best)
        norms = [m for m in self.network.modules() if isinstance(m, LiveNorm) and m.live]
        if not norms or len(self.history) < 2:
            return
        before = distributed.share(self._score)
        self._reestimate(norms)
        if not distributed.share(self._score) >= before:
            self.network.load_state_dict(self.best)
        self.network.eval()

    @torch.no_grad()
    def _reestimate(self, norms: list[LiveNorm]) -> None:
        """Running statistics become the plain mean over batches as mixed as those of training."""
        momenta = [norm.momentum for norm in norms]
        self.network.eval()  # nothing else may move
        for norm in norms:
            norm.train()
        data = self._mine(self._order(self._random(0)))
        for k, (feeds, _) in enumerate(self._batches(data, self.rows)):
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
        if self.oscillations is not None:
            state["oscillations"] = self.oscillations.state_dict()
        if self.average is not None:
            state["average"] = self.average.state
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint of the same run ends, if there is one."""
        kept = distributed.share(lambda: path.read_bytes() if path.is_file() else None)
        if kept is None:
            return
        try:
            state: dict[str, Any] = torch.load(
                io.BytesIO(kept), map_location=self.device, weights_only=True
            )
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
        if self.oscillations is not None:
            self.oscillations.load_state_dict(state["oscillations"])
        if self.average is not None:
            self.average.state = state["average"]


def _hits(out: T, labels: T | None) -> int:
    """How many rows of scores [N, C] are highest at their label [N]."""
    return 0 if labels is None else int((out.argmax(1) == labels).sum())
