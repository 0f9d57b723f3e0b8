"""The ends of blocks on calibration samples, in the float and in the quantized network."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
import torch

from qtool.data import Dataset
from qtool.ptq.reconstruction.blocks import Block, Region
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation
from qtool.steps.context import Context
from qtool.steps.row_weights import row_power, row_weights, typical_power
from qtool.steps.value_store import ValueStore, value_quota

T = torch.Tensor

# Stores whose values are in memory together, where they fit.
STORES = 3


@dataclass(frozen=True)
class Batch:
    """One batch at the two ends of a block, values as they are before rounding.

    Attributes:
        block: that the values belong to.
        inputs: of the graph, by name.
        entry_float, entry_quantized: the block's entry in the float and in the quantized network;
            None for a block that is computed from the graph's inputs.
        target: the block's output in the float network.
        part: of the block's output that the target is compared with.
        typical: power of a typical position of the target; None: all positions weigh the same.
    """

    block: Block
    inputs: Mapping[str, T]
    entry_float: T | None
    entry_quantized: T | None
    target: T
    part: tuple[slice, ...] = ()
    typical: T | None = None

    def feeds(self, entry: T | None) -> dict[str, T]:
        """Return what a network computes the block's output from, with this entry."""
        return _feeds(self.inputs, self.block.entry, entry)

    @property
    def weights(self) -> T:
        """Weights of the positions of the target, which broadcast over the channels."""
        power = row_power(self.target, channel_axis(self.target))
        return torch.ones_like(power) if self.typical is None else row_weights(power, self.typical)


class BlockSamples:
    """Batches of calibration samples with both networks' values at the ends of a block.

    A batch holds the same samples at all blocks, so that a value need not have one row for each
    sample. Memory is bounded; what is beyond is read from temporary files.

    >>> with BlockSamples(context, 512, 32) as samples:               # doctest: +SKIP
    ...     for region in regions:
    ...         for block in region.blocks:
    ...             samples.enter(region, block, simulation)
    ...             for k in samples.fit: samples.batch(k)
    ...         samples.leave(region, simulation)

    Attributes:
        count: number of samples that are fitted to.
        fit, holdout: numbers of the batches that are fitted to, and of those that decide.
    """

    def __init__(self, context: Context, count: int, rows: int) -> None:
        """Read the samples.

        Args:
            context: model and data.
            count: of the ``fit`` samples, evenly spaced, at most.
            rows: samples of a batch; a model's own batch size comes first.
        """
        self._context = context
        self._float = Executor(context.model)
        self._folder = tempfile.TemporaryDirectory(prefix="qtool-")
        # What every block of a region is computed from (the graph's inputs, and values); the ends
        # of the current block, and weights. What is used longest is stored first.
        self._quota = value_quota(STORES)
        self._input_store, self._region_store = self._new_store(), self._new_store()
        self._block_store, self._weight_store = self._new_store(), self._new_store()
        self.count = min(count, context.fit.count)
        order = np.random.default_rng(context.seed).permutation(self.count)
        fit = context.fit.take([int(k) * context.fit.count // self.count for k in order])
        self.fit = self._read(fit, rows, 0)
        self.holdout = self._read(context.holdout, rows, len(self.fit))
        for k in self._all:
            self._region_store.put(k, {}, {})
        self._block: Block | None = None
        self._typical: T | None = None

    def __enter__(self) -> "BlockSamples":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def _new_store(self) -> ValueStore:
        return ValueStore(Path(tempfile.mkdtemp(dir=self._folder.name)), self._quota)

    def _read(self, dataset: Dataset, rows: int, first: int) -> range:
        """Store the batches of a dataset; return their numbers, from ``first`` on."""
        end = first
        # A model of a fixed batch reads the repeated samples of the last one too.
        for feeds, _ in self._context.feeds(dataset, rows):
            self._input_store.put(end, {name: torch.tensor(x) for name, x in feeds.items()})
            end += 1
        return range(first, end)

    @property
    def _all(self) -> range:
        """Numbers of all batches."""
        return range(self.holdout.stop)

    def _inputs(self, k: int) -> dict[str, T]:
        """Return the graph's inputs of batch ``k``."""
        return self._input_store.get(k)[0]

    def enter(self, region: Region, block: Block, simulation: Simulation) -> None:
        """Compute the ends of a block for all samples.

        Args:
            region: of the block; all regions before it were left.
            block: one of the region's blocks.
            simulation: of the quantized network, for what lies between the two entries.
        """
        self._block = block
        self._block_store.clear()
        self._weight_store.clear()
        store = self._block_store
        with torch.no_grad():
            for k in self._all:
                entries = self._region_store.get(k)
                feeds = {**self._inputs(k), **entries[0]}
                target = self._float(feeds, None, [block.exit])[block.exit]
                if block.entry is not None and block.entry != region.entry:
                    entries = self._values(k, block.entry, simulation)
                store.put(k, {**entries[0], block.exit: target}, entries[1])
                if k == 0:
                    self._typical = typical_power(row_power(target, channel_axis(target)))

    def batch(self, k: int) -> Batch:
        """Return batch ``k`` of the block that was entered last."""
        block = self._block
        assert block is not None
        in_float, in_quantized = self._block_store.get(k)
        entry = block.entry or ""
        return Batch(
            block,
            self._inputs(k),
            in_float.get(entry),
            in_quantized.get(entry),
            in_float[block.exit],
            typical=self._typical,
        )

    def leave(self, region: Region, simulation: Simulation) -> None:
        """Compute the exit of a region for all samples; its blocks do not change any more.

        Args:
            region: the next one in the order of the graph.
            simulation: of the quantized network with the region's learned blocks.
        """
        with torch.no_grad():
            for k in self._all:
                self._region_store.put(k, *self._values(k, region.exit, simulation))

    def _values(self, k: int, name: str, simulation: Simulation) -> tuple[dict, dict]:
        """Return a value behind the region's entry in both networks, by name, for one batch."""
        in_float, in_quantized = self._region_store.get(k)
        inputs = self._inputs(k)
        made = self._float({**inputs, **in_float}, None, [name])
        rounded = unrounded_output(simulation, {**inputs, **in_quantized}, name)
        return made, {name: rounded}

    def relative_error(self, simulation: Simulation, batches: range) -> float:
        """Return sum w (y_q - y)^2 / sum w y^2 of the block's output y over batches.

        w: of positions, see :func:`qtool.steps.row_weights.row_weights`.

        Args:
            simulation: of the quantized network.
            batches: their numbers.
        """
        error = power = 0.0
        with torch.no_grad():
            for batch in self.each(batches):
                feeds = batch.feeds(batch.entry_quantized)
                output = unrounded_output(simulation, feeds, batch.block.exit)
                weights = batch.weights.double()
                error += float((weights * (output - batch.target).double().square()).sum())
                power += float((weights * batch.target.double().square()).sum())
        return error / (power or 1.0)

    @property
    def at_output(self) -> bool:
        """Return whether the block that was entered last ends at the network's first output."""
        return self._block is not None and self._block.exit == self._context.first_output

    def weights(self, weights: Iterator[T]) -> Callable[[int], T]:
        """Store weights of the fit batches' output elements; return them by number, with mean 1.

        Args:
            weights: one for each batch of ``fit``, in order.
        """
        store, total = self._weight_store, 0.0
        for k, weight in zip(self.fit, weights, strict=True):
            store.put(k, {"weight": weight})
            total += float(weight.double().mean())
        mean = total / len(self.fit)
        return lambda k: store.get(k)[0]["weight"] / mean if mean > 0 else torch.ones(())

    def each(self, batches: range) -> Iterator[Batch]:
        """Yield batches of the block in order."""
        for k in batches:
            yield self.batch(k)


def _feeds(inputs: Mapping[str, T], entry: str | None, value: T | None) -> dict[str, T]:
    return dict(inputs) if entry is None or value is None else {**inputs, entry: value}


def channel_axis(value: T) -> int:
    """Return the axis of the channels: 1 of images and of [N, C], the last one of sequences."""
    return value.dim() - 1 if value.dim() == 3 else min(1, value.dim() - 1)


def unrounded_output(simulation: Simulation, feeds: Mapping[str, T], name: str) -> T:
    """Return a value of the quantized network as it is before rounding.

    Args:
        simulation: of the network.
        feeds: values as they are before rounding.
        name: of the value.
    """

    def observe(value: ir.Value, tensor: T) -> T:
        return tensor if value.name == name else simulation.observe(value, tensor)

    return simulation.executor(feeds, observe, [name], simulation.raw)[name]
