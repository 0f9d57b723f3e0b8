"""Run the float and the quantized network side by side, one layer with weights after the other.

Steps that repair layers in order need, for every layer, its inputs in both networks: in the
quantized one as the layers before it, repaired already, compute them. The graph is cut in front of
each layer; the values alive at the cut are stored for all samples, so that every node runs once.
Those of the quantized network are stored as codes where one byte holds them.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
import torch

from qtool.data import Dataset
from qtool.graph.queries import captured, dims, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.runtime.chunk_threads import map_chunks
from qtool.runtime.executor import Executor
from qtool.runtime.memory import reused_memory
from qtool.simulation.fake_quant import Simulation
from qtool.steps.byte_codes import ByteCodes
from qtool.steps.context import MAX_ROWS, Context
from qtool.steps.value_store import Values, ValueStore

# Elements of the largest value of a chunk: blocks of 16 MB nearly fit in a cache.
CHUNK_ELEMENTS = 1 << 22
# Held-out samples that a layer's outputs are compared on: all nodes run on them too.
HELD_OUT_SAMPLES = 32


Pair = tuple[torch.Tensor, torch.Tensor]
"""A value of the float and of the quantized network."""


class LayerwiseRun:
    """The layers with weights of a plan, in order, with their inputs on the ``fit`` samples.

    Their outputs on the ``holdout`` samples can be compared too, where a run reads these.

    >>> with LayerwiseRun(context, plan, "gptq") as run:             # doctest: +SKIP
    ...     for site in run.sites():
    ...         for x_float, x_quantized in run.inputs(site): ...
    ...         run.plan = repaired

    Attributes:
        plan: of the quantized network; what is assigned holds from the next layer on.
        dataset: the samples that are read.
    """

    def __init__(
        self,
        context: Context,
        plan: QuantPlan,
        name: str,
        samples: int | None = None,
        holdout: bool = False,
    ) -> None:
        """Prepare a run.

        Args:
            context: model, data and progress.
            plan: every grid is calibrated.
            name: of the step, for progress.
            samples: of ``fit``, evenly spaced, at most; None: all.
            holdout: read up to HELD_OUT_SAMPLES of ``holdout`` too, for :meth:`held_out`.
        """
        self.plan, self.dataset = plan, context.fit
        count = self.dataset.count
        if samples is not None and samples < count:
            self.dataset = self.dataset.take([k * count // samples for k in range(samples)])
        self._holdout: Dataset | None = None
        if holdout:
            few = min(HELD_OUT_SAMPLES, context.holdout.count)
            self._holdout = context.holdout.take(context.holdout.choose(few))
        self._context, self._name = context, name
        self._nodes = nodes_by_name(context.model.graph)
        self._order = {node.name or "": k for k, node in enumerate(context.model.graph)}
        self._float = Executor(context.model, context.device)
        self._first = Simulation(context.model, plan, context.device)
        self._raw_names = {value for _, value in self._first.raw}
        self._lives = Lifetimes(context.model.graph)
        self._codes = ByteCodes(self._raw_names)
        self._resources = ExitStack()
        folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="qtool-"))
        self._store = ValueStore(Path(folder))
        self._fit = self._held = range(0)

    def __enter__(self) -> "LayerwiseRun":
        self._resources.enter_context(reused_memory())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.clear()
        self._resources.close()

    def sites(self) -> Iterator[Site]:
        """Yield the integer sites with weights, in graph order."""
        sites = [site for site in self.plan.sites.values() if site.weight is not None]
        sites.sort(key=lambda site: self._order[site.name])
        self._fit = self._read(self.dataset, 0)
        self._held = self._fit[len(self._fit) :]
        if self._holdout is not None:
            self._held = self._read(self._holdout, self._fit.stop)
        for k, site in enumerate(sites):
            self._advance(self._order[site.name])
            yield site
            self._context.progress(self._name, k + 1, len(sites))

    def _read(self, dataset: Dataset, first: int) -> range:
        """Store the chunks of a dataset; return their numbers, from ``first`` on."""
        end = first
        # A model of a fixed batch reads the repeated samples of the last one too.
        for feeds, _ in self._context.feeds(dataset, _chunk_rows(self._context)):
            values = {name: torch.as_tensor(array) for name, array in feeds.items()}
            self._store.put(end, values, self._codes.encode(self.plan, values))
            end += 1
        return range(first, end)

    @property
    def device(self) -> str:
        """The device of both networks."""
        return self._context.device

    @property
    def chunks(self) -> int:
        """Number of chunks that the ``fit`` samples are read in."""
        return len(self._fit)

    def inputs(
        self, site: Site, select: Callable[[int, Pair], Pair] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return an iterator over the layer's input in both networks, chunk by chunk.

        Args:
            site: the one that :meth:`sites` yielded last.
            select: called with the chunk's number and both inputs, in any order and in other
                threads; returns the parts that are yielded. It runs before rounding, which costs
                as much as a small layer.
        """
        name = site.inputs[0]
        simulation = self._simulation(self.plan)
        value = self._nodes[site.name].inputs[0]

        def pair(k: int) -> tuple[torch.Tensor, torch.Tensor]:
            x_float, stored = (values[name] for values in self._store.get(k, [name]))
            x_quantized = self._codes.decode({name: stored})[name]
            if select is not None:
                x_float, x_quantized = select(k, (x_float, x_quantized))
            # A value that float ops read too is stored as it was before rounding.
            if value is not None and not self._codes.are_rounded(self.plan, name):
                x_quantized = simulation.observe(value, x_quantized)
            return x_float, x_quantized

        return map_chunks(pair, self._fit, self._context.device)

    def outputs(self, site: Site) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return an iterator over both networks' output of the layer before its activation.

        The quantized layer has rounded weights and inputs; its output is not rounded.

        Args:
            site: the one that :meth:`sites` yielded last.
        """
        return ((y, each) for y, (each,) in self._outputs(site, (self.plan,), self._fit))

    def held_out(
        self, site: Site, plans: Sequence[QuantPlan]
    ) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
        """Return an iterator over a layer's output on ``holdout``, float and with each plan.

        As in :meth:`outputs`; what lies before the layer is that of the run's plan.

        Args:
            site: the one that :meth:`sites` yielded last.
            plans: which differ in this layer alone.
        """
        return self._outputs(site, plans, self._held)

    def _outputs(
        self, site: Site, plans: Sequence[QuantPlan], chunks: range
    ) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
        node = self._nodes[site.name]
        out = node.outputs[0].name or ""
        simulations = [self._simulation(plan) for plan in plans]

        def output(simulation: Simulation, feeds: Values) -> torch.Tensor:
            def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
                if value.name == out or self._codes.are_rounded(self.plan, value.name or ""):
                    return tensor
                return simulation.observe(value, tensor)

            return simulation.executor(feeds, observe, [out], simulation.raw)[out]

        def all_outputs(k: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            float_values, stored = self._store.get(k)
            feeds = self._codes.decode(stored)
            y_float = self._float(float_values, None, [out])[out]
            return y_float, tuple(output(simulation, feeds) for simulation in simulations)

        return map_chunks(all_outputs, chunks, self._context.device)

    def _simulation(self, plan: QuantPlan) -> Simulation:
        return Simulation(self._context.model, plan, self._context.device, self._first)

    def _advance(self, cut: int) -> None:
        """Compute the values alive in front of the node at position ``cut``, for all samples."""
        alive = self._lives.alive(cut)
        simulation = self._simulation(self.plan)

        def advance(k: int) -> None:
            float_values, stored = self._store.get(k)
            names = [name for name in alive if name not in float_values]
            if not names and set(alive) == set(float_values):
                return
            made = self._float(float_values, None, names) if names else {}
            codes = self._observed(simulation, stored, names) if names else {}
            self._store.put(
                k,
                {n: (made if n in made else float_values)[n] for n in alive},
                {n: (codes if n in codes else stored)[n] for n in alive},
            )

        chunks = range(self._held.stop)
        for _ in map_chunks(advance, chunks, self._context.device):
            pass

    def _observed(self, simulation: Simulation, stored: Values, names: list[str]) -> Values:
        """Return values of the quantized network, to be stored; unrounded where they are read so.

        Args:
            simulation: of the current plan.
            stored: values alive at the cut before.
            names: of the values to compute.
        """
        raw: Values = {}

        def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
            name = value.name or ""
            if name in stored and self._codes.are_rounded(self.plan, name):
                return tensor
            if name in self._raw_names:
                raw[name] = tensor
            return simulation.observe(value, tensor)

        feeds = self._codes.decode(stored)
        values = simulation.executor(feeds, observe, names, simulation.raw)
        return self._codes.encode(self.plan, {n: raw.get(n, values[n]) for n in names})


class Lifetimes:
    """The positions in a graph at which computed values and inputs are made and last read."""

    def __init__(self, graph: ir.Graph) -> None:
        made: dict[str, int] = {value.name or "": -1 for value in graph.inputs}
        last: dict[str, int] = {}
        for position, node in enumerate(graph):
            for value in (*node.inputs, *captured(node)):
                if value is not None and value.name in made:
                    last[value.name or ""] = position
            made |= {value.name or "": position for value in node.outputs}
        self._names = list(last)
        self._made = np.array([made[name] for name in last])
        self._last = np.array(list(last.values()))

    def alive(self, cut: int) -> list[str]:
        """Return values that are made before position ``cut`` and read there or later."""
        return [self._names[k] for k in np.flatnonzero((self._made < cut) & (self._last >= cut))]


def _chunk_rows(context: Context) -> int | None:
    """Return how many samples a chunk has; None where the sizes of values are not known."""
    sizes = [1]
    for node in context.model.graph:
        for value in node.outputs:
            shape = dims(value) or ()
            if all(isinstance(dim, int) for dim in shape[1:]):
                sizes.append(math.prod(int(dim) for dim in shape[1:] if dim is not None))
    return None if len(sizes) == 1 else max(1, min(MAX_ROWS, CHUNK_ELEMENTS // max(sizes)))
