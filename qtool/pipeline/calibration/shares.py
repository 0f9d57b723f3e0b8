"""Collect statistics in shares: each process reads every so manieth batch of the samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qtool.calibration.collect import PassOptions, Shard, collect_shard, merge_early, merge_shards
from qtool.calibration.statistics import Stats
from qtool.data import Dataset
from qtool.data.inputs import samples_in
from qtool.graph.content_digest import content_digest
from qtool.pipeline.processes.message import Worker
from qtool.qat import distributed
from qtool.steps.context import Context


@dataclass(frozen=True)
class Pass:
    """Statistics of one pass over the samples.

    Attributes:
        stats: value name -> statistics of all samples.
        early: those of the first ``early_samples`` of them, without extremes.
        early_samples: half of the samples, in whole batches; 0: there is only one batch.
    """

    stats: Mapping[str, Stats]
    early: Mapping[str, Stats]
    early_samples: int


@dataclass(frozen=True)
class CalibrationShares:
    """Message: each process collects the statistics of its batches; they merge to the same bytes.

    Batch k of one process is batch k of several, so every summary is the same one; histograms and
    sums of limits merge exactly in any order, moving averages in the order of the batches.

    Attributes:
        observed: names of the values.
        fit: read ``context.fit``, not all calibration samples.
        rows: samples of a batch.
        histograms, smoothing: as for :func:`qtool.calibration.collect.collect`.
    """

    observed: tuple[str, ...]
    fit: bool
    rows: int
    histograms: bool
    smoothing: float

    def assist(self, worker: Worker) -> None:
        """Collect this process's shard and send it to the first one."""
        distributed.gather(self.shard(worker.prepared.context))

    def collect(
        self, context: Context, on_batch: Callable[[int], None] = lambda rows: None
    ) -> Pass:
        """Return the statistics of the samples; called in the first process.

        Args:
            context: holds the graph and the samples.
            on_batch: called with the number of samples after each batch of all processes.
        """
        if distributed.count() > 1:
            distributed.share(lambda: self)
        own = self.shard(context, lambda rows: on_batch(rows * distributed.count()))
        shards = distributed.gather(own)
        stats = merge_shards(context.model, self.observed, shards, self.smoothing)
        early_samples = (self._half(context) - 1) * self.rows
        return Pass(stats, merge_early(self.observed, shards), early_samples)

    def shared(self, context: Context, on_batch: Callable[[int], None] = lambda rows: None) -> Pass:
        """Return what :meth:`collect` returns, once for all trials of one graph and its samples.

        Args:
            context: as for :meth:`collect`.
            on_batch: as for :meth:`collect`.
        """

        def key() -> str:
            parts = (content_digest(context.model), repr(self), self._data(context).digest)
            return "\0".join(parts)

        return context.cache.remembered("statistics", key, lambda: self.collect(context, on_batch))

    def shard(self, context: Context, on_batch: Callable[[int], None] = lambda rows: None) -> Shard:
        """Return the statistics of this process's batches."""

        def samples(batch: Mapping[str, np.ndarray]) -> int:
            rows = samples_in(batch, context.inputs.values())
            on_batch(rows)
            return rows

        names = self._data(context).names

        def sample_name(number: int, row: int) -> str:
            return names[min((number - 1) * self.rows + row, len(names) - 1)]

        options = PassOptions(self.histograms, context.threads, samples, sample_name)
        batches, half = self._batches(context), self._half(context)
        return collect_shard(context.model, self.observed, batches, options, half)

    def _data(self, context: Context) -> Dataset:
        return context.fit if self.fit else context.calibration

    def _half(self, context: Context) -> int:
        """Return the number, from 1, of the first batch of the second half."""
        return 1 + self._data(context).count // (2 * self.rows)

    def _batches(self, context: Context) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        """Yield (number from 1, inputs) of this process's batches."""
        data = self._data(context)
        first, step = distributed.rank(), distributed.count()
        own = [k for k in range(data.count) if k // self.rows % step == first]
        part = data.take(own) if step > 1 else data
        if not part.count:
            return
        fixed = context.fixed_batch
        for number, (batch, _) in enumerate(part.calls(self.rows, fixed is not None)):
            yield 1 + first + number * step, {name: batch[name] for name in context.inputs}
