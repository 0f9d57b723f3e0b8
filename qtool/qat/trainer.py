"""The training loop: labels, the float network as teacher, or both.

A run that was stopped at any moment goes on from its last finished epoch, and ends with the same
numbers as one that was not: every random choice is made from the seed and the epoch.
"""

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtool.data import Dataset
from qtool.errors import DataError, RecipeError
from qtool.files import atomic_path
from qtool.progress import Progress, silent
from qtool.qat import distributed
from qtool.qat.augmentation.mixup import LabelPairs
from qtool.qat.batches import Batches
from qtool.qat.batchnorm import LiveNorm
from qtool.qat.ema import MovingAverage, copy_state
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.loss import Loss, Teacher, are_classes
from qtool.qat.optimizer import build_optimizer, default_clip, rates
from qtool.qat.oscillation import Oscillations
from qtool.qat.quantizers.base import lower_bits
from qtool.qat.settings import Epoch, GradualMasks, RunFiles, Settings, best_epoch
from qtool.qat.tensorboard_log import TensorBoardLog, tensorboard_log
from qtool.runtime.memory import reused_memory

T = torch.Tensor

# Batches over which the statistics of BatchNorm are averaged again at the end.
REESTIMATION_BATCHES = 50
# Training has diverged where the loss of an epoch is so many times that of the first one, and the
# score is below that before training.
DIVERGED = 2.0
# Steps between checks of the loss: on a GPU a check waits for it.
CHECK_INTERVAL = 50
# Changes of the masks of pruned weights in an epoch.
MASK_CHANGES = 10


def train(
    network: QatNetwork,
    teacher: Teacher,
    data: Dataset,
    validation: Dataset,
    settings: Settings,
    files: RunFiles,
    progress: Progress = silent,
) -> tuple[list[Epoch], float | None]:
    """Train in place; the network ends with the parameters of the best epoch on ``validation``.

    The plan before training competes too, so that training never makes the validation score worse.
    Stops, with the best parameters so far, at a loss that is not finite, or at one twice that of
    the first epoch with a score below that of the plan before training; also after
    ``settings.patience`` epochs without a better one.

    With ``settings.ema`` the moving average is evaluated and returned in place of the network.

    Several processes (:mod:`qtool.qat.distributed`) train as one does: each takes its rows of every
    batch, and the first alone evaluates and writes. (Mixed images are of one process's rows.)

    Args:
        network: that is trained.
        teacher: values of the float network for a batch of inputs.
        data: samples to learn from, with labels unless ``settings.teacher`` is 1.
        validation: samples that choose the best epoch.
        settings: of the run.
        files: the checkpoint, which is read if it is there, and the TensorBoard folder.
        progress: called after every step.

    Returns:
        The evaluated epochs, the plan before training first, and the float network's score on the
        same samples; None where the score is not top-1.

    Raises:
        DataError: the labels are not class numbers, or the calibrated network's outputs are not
            finite.
        RecipeError: the checkpoint cannot be read, or has more epochs than the settings.
    """
    loop = _Loop(network, teacher, data, validation, settings, progress)
    loop.resume(files.checkpoint)
    loop.float_score = distributed.share(loop.evaluate_float)
    steps = loop.batches.steps
    with (
        reused_memory(),
        tensorboard_log(files.tensorboard, loop.history, steps, settings) as loop.log,
    ):
        for number in range(len(loop.history), settings.epochs + 1):
            if loop.diverged or loop.exhausted or not loop.epoch(number):
                break
            if distributed.rank() == 0:
                loop.save(files.checkpoint)
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
        self.network, self.settings, self.progress = network, settings, progress
        self.loss = Loss(network, teacher, settings)
        self.device = next(network.parameters()).device
        labels = data.labels
        by_class = settings.teacher < 1 and settings.loss is None
        if by_class and (labels is None or labels.ndim != 1):
            raise DataError("qat: training by labels needs one class number per sample")
        self.batches = Batches(data, validation, settings, self.device)
        # Means over this process's rows times this sum to the mean over the batch.
        self.share = self.batches.part.count / self.batches.part.size
        distributed.broadcast_tensors(network.state_dict().values())
        self.optimizer = build_optimizer(network, settings)
        oscillation, ema = settings.oscillation, settings.ema
        self.oscillations = None if oscillation is None else Oscillations(network, oscillation)
        self.average = None if ema is None else MovingAverage(network, ema)
        self.clip = default_clip(network) if settings.clip is None else settings.clip
        self.history: list[Epoch] = []
        self.best: dict[str, T] = {}
        self.float_score: float | None = None
        self.log: TensorBoardLog | None = None
        self.diverged = False

    @property
    def exhausted(self) -> bool:
        """True where no epoch has been better for as many as the settings allow."""
        patience = self.settings.patience
        if patience is None or not self.history:
            return False
        return self.history[-1].number - best_epoch(self.history) >= patience

    def epoch(self, number: int) -> bool:
        """Train one epoch (none for 0) and evaluate it; return False if training has diverged."""
        start, loss = time.perf_counter(), None
        if number:
            loss = self._train_one(number)
            if loss is None:
                self.diverged = True
                return False
        oscillating, frozen = None, None
        if self.oscillations and number:
            oscillating, frozen = self.oscillations.shares()
        with self._averaged():
            score = distributed.share(self._evaluate)
            self.diverged = not math.isfinite(score) or self._rises(loss, score)
            if self.diverged and number:
                return False
            if self.diverged:
                raise DataError(
                    "qat: the calibrated network gives no numbers for the held-out samples"
                )
            seconds, sparsity = time.perf_counter() - start, self.network.sparsity()
            self.history.append(Epoch(number, loss, score, seconds, oscillating, frozen, sparsity))
            if self.log is not None:
                self.log.epoch(self.history[-1])
            steps = self.batches.steps
            total = self.settings.epochs * steps
            self.progress("train", number * steps, total, self._progress_note())
            if best_epoch(self.history) == number:
                self.best = copy_state(self.network)
        return True

    def _rises(self, loss: float | None, score: float) -> bool:
        """Return whether the loss is far above that of epoch 1, and the score below the plan's.

        While masks grow, so does the loss: then the first epoch with all of them is compared with.
        """
        pruning = self.settings.pruning
        start = 1 if pruning is None else pruning.epochs + 1
        first = self.history[start].loss if len(self.history) > start else None
        if loss is None or first is None or score >= self.history[0].score:
            return False
        return loss > DIVERGED * first > 0

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Replace the network by its moving average, if there is one, until the end."""
        if self.average is None:
            yield
            return
        with self.average.in_place_of(self.network):
            if self.oscillations is not None:
                # The averages still contain weights from before they were frozen.
                self.oscillations.restore_frozen()
            yield

    def _train_one(self, number: int) -> float | None:
        """Train one epoch; return its mean loss, or None where that is not finite."""
        settings, network, steps = self.settings, self.network, self.batches.steps
        generator = self.batches.generator(number)
        torch.manual_seed(generator.initial_seed())  # for a loss that draws numbers
        total, done = torch.zeros((), device=self.device), 0
        network.train()
        for feeds, labels in self.batches.train(generator):
            at = number - 1 + done / steps
            for group, rate in zip(self.optimizer.param_groups, rates(settings, at), strict=True):
                group["lr"] = rate
            if self.oscillations is not None:
                paced = self.oscillations.weight_rate(at / settings.epochs)
                if paced is not None:
                    self.optimizer.param_groups[0]["lr"] = settings.lr * paced
            loss = self._step(feeds, labels, at / settings.epochs)
            total, done = total + loss, done + 1
            count = (number - 1) * steps + done
            self._after_step(count)
            if done % CHECK_INTERVAL == 0 and not math.isfinite(float(total)):
                return None
            if self.log is not None:
                self.log.step(count, loss)
            self.progress("train", count, settings.epochs * steps, self._progress_note())
        mean = float(total) / done
        return mean if math.isfinite(mean) else None

    def _step(self, feeds: dict[str, T], labels: T | LabelPairs | None, share: float) -> T:
        """Take one optimizer step; return the loss of the whole batch, without added terms.

        Args:
            feeds: inputs by name.
            labels: of the inputs.
            share: of training that is done, 0 to 1.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.network.advance(share)
        lower_bits(self.network, self.settings.extra_bits, share)
        loss = self.loss(feeds, labels) * self.share
        dampening = None if self.oscillations is None else self.oscillations.dampening(share)
        added = [term for term in (dampening, self.network.penalty()) if term is not None]
        torch.stack([loss, *(term * self.share for term in added)]).sum().backward()
        parameters = self.network.parameters()
        loss = distributed.all_reduce_gradients(parameters, loss.detach())
        if self.oscillations is not None:
            self.oscillations.move_gradients()
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.network.project()
        return loss

    def _after_step(self, count: int) -> None:
        """Update masks, oscillations and the average.

        Args:
            count: steps since training began.
        """
        if self.settings.pruning is not None:
            self._grow_masks(self.settings.pruning, count)
        if self.oscillations is not None:
            self.oscillations.step(count / (self.settings.epochs * self.batches.steps))
        if self.average is not None:
            self.average.step(self.network, count)

    def _grow_masks(self, pruning: GradualMasks, count: int) -> None:
        """Prune more weights, every few steps until the schedule's end."""
        last, interval = pruning.epochs * self.batches.steps, self.batches.steps // MASK_CHANGES
        if count == last or (count < last and count % max(1, interval) == 0):
            self.network.set_masks(pruning(self.network.folded_weights(), count / last))

    def _progress_note(self) -> str:
        last = self.history[-1]
        loss = "" if last.loss is None else f", loss {last.loss:.3f}"
        target = "" if self.float_score is None else f" (float {self.float_score:.2f})"
        return f"epoch {last.number}: validation {last.score:.2f}{target}{loss}"

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Return the network's score on the validation samples; larger is better."""
        self.network.eval()
        hits, loss, by_class = 0, 0.0, False
        for feeds, labels, rows in self.batches.holdout():
            outputs = self.network(feeds, (self.network.compared,))
            out = outputs[self.network.compared][:rows]
            by_class = are_classes(labels, out)
            if by_class:
                hits += _hits(out, labels)
            else:
                loss += self.loss.distance(feeds, outputs, labels, rows) * rows
        return (100 * hits if by_class else -loss) / self.batches.validation.count

    @torch.no_grad()
    def evaluate_float(self) -> float | None:
        """Return top-1 of the float network in %; None where labels or outputs are no classes."""
        hits = 0
        for feeds, labels, rows in self.batches.holdout():
            out = self.loss.teacher_scores(feeds)[:rows]
            if not are_classes(labels, out):
                return None
            hits += _hits(out, labels)
        return 100 * hits / self.batches.validation.count

    def finish(self) -> None:
        """Load the best parameters; average BatchNorm's statistics again where that helps."""
        self.network.load_state_dict(self.best)
        norms = self.network.live_norms()
        if not norms or len(self.history) < 2:
            return
        before = distributed.share(self._evaluate)
        self._reestimate(norms)
        if not distributed.share(self._evaluate) >= before:
            self.network.load_state_dict(self.best)
        self.network.eval()

    @torch.no_grad()
    def _reestimate(self, norms: list[LiveNorm]) -> None:
        """Set running statistics to the plain mean over batches in the random order of training."""
        momenta = [norm.momentum for norm in norms]
        self.network.eval()  # of all modules the norms alone may change
        for norm in norms:
            norm.train()
        for k, feeds in enumerate(self.batches.shuffled(self.batches.generator(0))):
            if k == min(REESTIMATION_BATCHES, self.batches.steps):
                break
            for norm in norms:
                norm.momentum = 1 / (k + 1)  # a mean of k + 1 batches, updated
            self.network(feeds)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def save(self, path: Path) -> None:
        """Write everything the next epoch depends on, in one file that is whole or not there."""
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
        """Load the checkpoint of the same run, if there is one.

        Raises:
            RecipeError: the file is damaged, or has more epochs than the settings.
        """
        content = distributed.share(lambda: path.read_bytes() if path.is_file() else None)
        if content is None:
            return
        try:
            state: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location=self.device, weights_only=True
            )
        except Exception as error:  # a damaged archive fails in many ways
            raise RecipeError(
                f"qat: the checkpoint {path} cannot be read; start anew with --fresh"
            ) from error
        history = [Epoch(**epoch) for epoch in state["history"]]
        if len(history) - 1 > self.settings.epochs:
            raise RecipeError(
                f"qat: found {len(history) - 1} epochs in the checkpoint {path}, expected at most "
                f"{self.settings.epochs}; train as many, or start anew with --fresh"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = history, state["best"]
        if self.oscillations is not None:
            self.oscillations.load_state_dict(state["oscillations"])
        if self.average is not None:
            self.average.state = state["average"]


def _hits(out: T, labels: T | None) -> int:
    """Count the rows of scores [N, C] that are highest at their label [N]."""
    return 0 if labels is None else int((out.argmax(1) == labels).sum())
