"""Run the float and the quantized network side by side, one layer with weights after the other.

Steps that repair layers in order need, for every layer, its inputs in both networks: in the
quantized one as the layers before it, repaired already, compute them. The graph is cut in front of
each layer; the values alive at the cut are kept for all samples, so that every node runs once.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import onnx_ir as ir
import torch

from qtool.graph.queries import captured, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerTensor
from qtool.runtime.executor import Executor
from qtool.simulation.fake_quant import Simulation, raw_edges
from qtool.steps.context import Context
from qtool.steps.value_store import ValueStore


class LayerwiseRun:
    """The layers with weights of a plan, in order, with their inputs on the ``fit`` samples.

    >>> with LayerwiseRun(context, plan, "gptq") as run:             # doctest: +SKIP
    ...     for site in run.sites():
    ...         for x_float, x_quantized in run.inputs(site): ...
    ...         run.plan = repaired

    Attributes:
        plan: of the quantized network; what is assigned holds from the next layer on.
        dataset: the samples that are read.
    """

    def __init__(
        self, context: Context, plan: QuantPlan, name: str, samples: int | None = None
    ) -> None:
        """Prepare a run.

        Args:
            context: model, data and progress.
            plan: every grid is calibrated.
            name: of the step, for progress.
            samples: of ``fit``, evenly spaced, at most; None: all.
        """
        self.plan, self.dataset = plan, context.fit
        count = self.dataset.count
        if samples is not None and samples < count:
            self.dataset = self.dataset.take([k * count // samples for k in range(samples)])
        self._context, self._name = context, name
        self._nodes = nodes_by_name(context.model.graph)
        self._order = {node.name or "": k for k, node in enumerate(context.model.graph)}
        self._float = Executor(context.model, context.device)
        self._raw_names = {value for _, value in raw_edges(context.model, plan)}
        self._folder = tempfile.TemporaryDirectory(prefix="qtool-")
        self._store = ValueStore(Path(self._folder.name))
        self._chunks = 0

    def __enter__(self) -> "LayerwiseRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def sites(self) -> Iterator[Site]:
        """Yield the integer sites with weights, in graph order."""
        sites = [site for site in self.plan.sites.values() if site.weight is not None]
        sites.sort(key=lambda site: self._order[site.name])
        for feeds, valid in self._context.feeds(self.dataset):
            # A model of a fixed batch reads the repeated samples of the last one too.
            rows = None if self._context.fixed_batch else valid
            values = {name: torch.as_tensor(array[:rows]) for name, array in feeds.items()}
            self._store.put(self._chunks, values, values)
            self._chunks += 1
        for k, site in enumerate(sites):
            self._advance(self._order[site.name])
            yield site
            self._context.progress(self._name, k + 1, len(sites))

    @property
    def chunks(self) -> int:
        """Number of chunks that the samples are read in."""
        return self._chunks

    def inputs(
        self, site: Site, select: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the layer's input in the float and in the quantized network, chunk by chunk.

        Args:
            site: the one that :meth:`sites` yielded last.
            select: called with the chunk's number and either input; returns the part that is
                yielded. It runs before rounding, which costs as much as a small layer.
        """
        name = site.inputs[0]
        simulation = self._simulation()
        value = self._nodes[site.name].inputs[0]
        for k in range(self._chunks):
            x_float, x_quantized = (values[name] for values in self._store.get(k))
            if select is not None:
                x_float, x_quantized = select(k, x_float), select(k, x_quantized)
            # A value that float ops read too is kept as it was before rounding.
            if value is not None:
                x_quantized = _rounded(simulation, value, x_quantized)
            yield x_float, x_quantized

    def outputs(self, site: Site) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the layer's output before its activation in both networks, chunk by chunk.

        The quantized layer has rounded weights and inputs; its output is not rounded.

        Args:
            site: the one that :meth:`sites` yielded last.
        """
        node = self._nodes[site.name]
        out = node.outputs[0].name or ""
        simulation = self._simulation()

        def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
            return tensor if value.name == out else simulation.observe(value, tensor)

        with torch.inference_mode():
            for k in range(self._chunks):
                float_values, quantized = self._store.get(k)
                y_float = self._float(float_values, None, [out])[out]
                yield y_float, simulation.executor(quantized, observe, [out], simulation.raw)[out]

    def _simulation(self) -> Simulation:
        return Simulation(self._context.model, self.plan, self._context.device)

    def _advance(self, cut: int) -> None:
        """Compute the values alive in front of the node at position ``cut``, for all samples."""
        alive = self._alive(cut)
        simulation = self._simulation()
        with torch.inference_mode():
            for k in range(self._chunks):
                float_values, quantized = self._store.get(k)
                names = [name for name in alive if name not in float_values]
                if not names and set(alive) == set(float_values):
                    continue
                made = self._float(float_values, None, names) if names else {}
                rounded = self._observed(simulation, quantized, names) if names else {}
                self._store.put(
                    k,
                    {n: (made if n in made else float_values)[n] for n in alive},
                    {n: (rounded if n in rounded else quantized)[n] for n in alive},
                )

    def _observed(
        self, simulation: Simulation, feeds: Mapping[str, torch.Tensor], names: list[str]
    ) -> dict[str, torch.Tensor]:
        """Return values of the quantized network; unrounded where a float op reads them so."""
        raw: dict[str, torch.Tensor] = {}

        def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
            if value.name in self._raw_names:
                raw[value.name or ""] = tensor
            return _rounded(simulation, value, tensor)

        rounded = simulation.executor(feeds, observe, names, simulation.raw)
        return {name: raw.get(name, rounded[name]) for name in names}

    def _alive(self, cut: int) -> list[str]:
        """Return values that are made before position ``cut`` and read there or later."""
        names: dict[str, None] = {}
        for node in list(self._context.model.graph)[cut:]:
            for value in (*node.inputs, *captured(node)):
                if value is None or value.is_initializer():
                    continue
                producer = value.producer()
                before = (
                    value.is_graph_input()
                    if producer is None
                    else self._order.get(producer.name or "", cut) < cut
                )
                if before:
                    names[value.name or ""] = None
        return list(names)


def _rounded(simulation: Simulation, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
    """Return a value as readers in the quantized network see it; activations without copies.

    The operations of :func:`fake_quantize` in their order, sample by sample in place: a sample
    stays in the cache, which is four times faster and equal to the last bit.
    """
    params = simulation.plan.params(value.name or "")
    plain = params is not None and isinstance(params.spec.granularity, PerTensor)
    if params is None or not plain or value.is_initializer() or tensor.dim() < 2:
        return simulation.observe(value, tensor)
    scale, zero, spec = float(params.scale), float(params.zero_point), params.spec
    rounded = torch.empty_like(tensor)
    for x, y in zip(tensor, rounded, strict=True):
        torch.div(x, scale, out=y)
        y.round_().add_(zero).clamp_(spec.qmin, spec.qmax).sub_(zero).mul_(scale)
    return rounded
