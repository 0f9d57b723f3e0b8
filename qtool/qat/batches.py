"""Batches of training and validation samples: their order, this process's rows, augmentation."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch

from qtool.data import Dataset
from qtool.qat import distributed
from qtool.qat.augmentation.augment import augment
from qtool.qat.augmentation.mixup import LabelPairs
from qtool.qat.loss import valid_labels
from qtool.qat.settings import Settings

T = torch.Tensor


class Batches:
    """Batches of the training data and the validation data, on one device.

    Every random choice is made from the seed and the epoch, so that a run that was stopped goes on
    with the same numbers.

    Attributes:
        steps: training batches in an epoch.
        part: this process's rows of a training batch.
    """

    def __init__(
        self, train_data: Dataset, validation: Dataset, settings: Settings, device: torch.device
    ) -> None:
        """Read nothing yet.

        Args:
            train_data: samples to learn from.
            validation: samples that choose the best epoch.
            settings: with batch size, seed and augmentation.
            device: of the tensors that are returned.
        """
        self.train_data, self.validation = train_data, validation
        self.settings, self.device = settings, device
        # Whole batches alone: a short last one would disturb the statistics of BatchNorm.
        self.steps = max(1, train_data.count // settings.batch)
        size = min(settings.batch, train_data.count)
        self.part = distributed.BatchPart(size, distributed.rank(), distributed.count())

    def generator(self, epoch: int) -> torch.Generator:
        """Return the source of every random choice of one epoch."""
        return torch.Generator().manual_seed((self.settings.seed << 20) + epoch)

    def train(
        self, generator: torch.Generator
    ) -> Iterator[tuple[dict[str, T], T | LabelPairs | None]]:
        """Yield augmented inputs by name and labels of this process's rows, in random order.

        Args:
            generator: of the epoch; draws the order first, then the augmentation.
        """
        for feeds, labels in self._read(self._shuffle(generator), self.part.count):
            augmented, targets = augment(feeds, labels, self.settings, generator, self.part)
            yield self._to_device(augmented), None if targets is None else targets.to(self.device)

    def shuffled(self, generator: torch.Generator) -> Iterator[dict[str, T]]:
        """Yield inputs of this process's rows as :meth:`train` does, without augmentation.

        Args:
            generator: draws the order.
        """
        for feeds, _ in self._read(self._shuffle(generator), self.part.count):
            yield self._to_device(feeds)

    def holdout(self) -> Iterator[tuple[dict[str, T], T | None, int]]:
        """Yield (inputs of a batch, labels of its first rows, number of these) for validation.

        Where the network takes one batch size alone, the last batch is filled up with its last
        sample.
        """
        data, total, done = self.validation, self.validation.count, 0
        if self.settings.fixed:
            data = data.take([*range(total), *[total - 1] * (-total % self.settings.batch)])
        for feeds, labels in self._read(data, self.settings.batch):
            rows = min(self.settings.batch, total - done)
            labels = None if labels is None else labels.to(self.device)[:rows]
            yield self._to_device(feeds), labels, rows
            done += rows

    def _shuffle(self, generator: torch.Generator) -> Dataset:
        """Return this process's rows of every whole batch, in random order."""
        order = torch.randperm(self.train_data.count, generator=generator).numpy()
        whole = order[: self.steps * self.part.size].reshape(self.steps, -1)
        return self.train_data.take(whole[:, self.part.rows].ravel())

    def _read(self, data: Dataset, size: int) -> Iterator[tuple[dict[str, T], T | None]]:
        """Yield inputs by name and labels, on the CPU."""
        with closing(data.batches(size)) as stream:  # type: ignore[type-var]
            for batch in stream:
                labels = batch.pop("label", None)
                feeds = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in batch.items()}
                yield feeds, valid_labels(labels, self.settings.loss is not None)

    def _to_device(self, feeds: dict[str, T]) -> dict[str, T]:
        return {k: v.to(self.device) for k, v in feeds.items()}
