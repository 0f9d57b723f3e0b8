"""Run a network in which some sites are quantized and all others compute in float."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch

from qtool.data import Dataset
from qtool.graph.queries import captured, name_of, nodes_by_name
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.runtime.chunk_threads import map_chunks
from qtool.runtime.executor import Executor, Observe
from qtool.simulation.fake_quant import Simulation
from qtool.steps.context import Context

Part = Literal["weights", "activations", "both"]
"""The part of a site that is quantized."""

Values = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Unit:
    """A site, or a float op that reads stored codes: quantized as a whole or not at all.

    Attributes:
        name: of the node that does the work.
        op: its op type.
        reads: activation values it reads.
        outputs: values it computes.
        weights: initializers that are codes in the quantized network.
        others: values with a grid that its nodes read or compute besides, such as constants.
    """

    name: str
    op: str
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    others: tuple[str, ...] = ()


class PartialNetwork:
    """A network whose units are quantized one by one, in graph order.

    A quantized unit rounds what it reads, its weights, and its output where the plan has a grid for
    it, as it would in a file in which it alone is an integer kernel.

    Attributes:
        units: in graph order.
    """

    def __init__(self, context: Context, plan: QuantPlan) -> None:
        """Prepare a network.

        Args:
            context: the float graph and the device.
            plan: every grid is calibrated; it need not be frozen.
        """
        self._model, self._last = context.model, context.first_output
        self._simulation = Simulation(context.model, freeze(context.model, plan), context.device)
        self._float = Executor(context.model, context.device)
        self._lives = _lifetimes(context.model.graph, self._last)
        order = {name_of(node): k for k, node in enumerate(context.model.graph)}
        pairs = [
            (unit, 1 + max(order[name] for name in nodes))
            for unit, nodes in _units(plan, context.model)
        ]
        pairs.sort(key=lambda pair: pair[1])
        self.units = tuple(unit for unit, _ in pairs)
        self._cuts = dict(pairs)

    def alive(self, unit: Unit) -> list[str]:
        """Return the values that are made up to a unit and read behind it."""
        cut = self._cuts[unit]
        return [name for name, (made, read) in self._lives.items() if made < cut <= read]

    def before(self, values: Values, unit: Unit) -> dict[str, torch.Tensor]:
        """Return what a unit reads and what is alive behind it, but for its own outputs.

        Args:
            values: alive behind the unit before, or the network's inputs.
            unit: the next one.
        """
        reads = dict.fromkeys((*unit.reads, *self.alive(unit)))
        names = [name for name in reads if name not in unit.outputs]
        missing = [name for name in names if name not in values]
        with torch.inference_mode():
            made = self._float(values, None, missing) if missing else {}
        return {name: made[name] if name in made else values[name] for name in names}

    def outputs(self, values: Values, unit: Unit, part: Part | None) -> dict[str, torch.Tensor]:
        """Compute the outputs of a unit.

        Args:
            values: what it reads, see :meth:`before`.
            unit: one of ``units``.
            part: what is quantized; None: nothing.
        """
        feeds = {name: values[name] for name in unit.reads}
        # Grids that are computed at run time belong to the activations.
        run = self._float if part in (None, "weights") else self._simulation.executor
        with torch.inference_mode():
            return run(feeds, self._observe(unit, part), list(unit.outputs))

    def advance(self, values: Values, unit: Unit, part: Part | None) -> dict[str, torch.Tensor]:
        """Return the values alive behind a unit.

        Args:
            values: alive behind the unit before, or the network's inputs.
            unit: the next one.
            part: what is quantized of it; None: nothing.
        """
        before = self.before(values, unit)
        return self.behind(before, unit, self.outputs(before, unit, part))

    def behind(self, before: Values, unit: Unit, outputs: Values) -> dict[str, torch.Tensor]:
        """Return the values alive behind a unit, from those before it and its outputs."""
        return {n: outputs[n] if n in outputs else before[n] for n in self.alive(unit)}

    def finish(self, values: Values) -> torch.Tensor:
        """Return the network's first output.

        Args:
            values: alive behind the last unit.
        """
        with torch.inference_mode():
            return self._float(values, None, [self._last])[self._last]

    def run(
        self, context: Context, dataset: Dataset, select: Callable[[Unit], Part | None]
    ) -> np.ndarray:
        """Return the first output on all samples with the selected units quantized.

        Args:
            context: cuts the samples into batches.
            dataset: samples for this network.
            select: what is quantized of a unit.
        """

        def output(batch: tuple[dict[str, np.ndarray], int]) -> np.ndarray:
            feeds, valid = batch
            values: Values = {name: torch.as_tensor(array) for name, array in feeds.items()}
            for unit in self.units:
                values = self.advance(values, unit, select(unit))
            return np.asarray(context.samples_of(self.finish(values), valid).float().cpu().numpy())

        return np.concatenate(list(map_chunks(output, context.feeds(dataset), context.device)))

    def _observe(self, unit: Unit, part: Part | None) -> Observe | None:
        if part is None:
            return None
        own = {*unit.reads, *unit.outputs}

        def observe(value: ir.Value, tensor: Any) -> Any:
            is_own = value.name in own
            rounded = part in ("activations", "both") if is_own else part in ("weights", "both")
            return self._simulation.observe(value, tensor) if rounded else tensor

        return observe


def _units(plan: QuantPlan, model: ir.Model) -> list[tuple[Unit, tuple[str, ...]]]:
    """Return the units of a plan, each with the names of its nodes."""
    nodes = nodes_by_name(model.graph)
    units = []
    for site in plan.sites.values():
        weights = tuple(name for name in (site.weight, site.bias) if name)
        own = [nodes[name] for name in site.nodes]
        reads = _reads(own)
        others = _others(own, plan, {*reads, site.output, *weights})
        unit = Unit(site.name, site.op, reads, (site.output,), weights, others)
        units.append((unit, site.nodes))
    for node in model.graph:
        name = name_of(node)
        stored = [v for v in node.inputs if v is not None and v.name in plan.weight_only]
        if stored and name not in plan.sites:
            outputs = [v.name for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
            weights = tuple(name_of(v) for v in stored)
            unit = Unit(name, node.op_type, _reads([node]), tuple(outputs), weights)
            units.append((unit, (name,)))
    return units


def _reads(nodes: list[ir.Node]) -> tuple[str, ...]:
    """Return the activations that nodes read and do not compute themselves."""
    made = {value.name for node in nodes for value in node.outputs}
    values = [v for node in nodes for v in (*node.inputs, *captured(node)) if v is not None]
    names = [v.name for v in values if v.name and not v.is_initializer()]
    return tuple(name for name in dict.fromkeys(names) if name not in made)


def _others(nodes: list[ir.Node], plan: QuantPlan, named: Collection[str]) -> tuple[str, ...]:
    """Return the values with a grid that nodes read or compute, besides those that are named."""
    values = [v for node in nodes for v in (*node.inputs, *node.outputs) if v is not None]
    names = dict.fromkeys(v.name for v in values if v.name)
    return tuple(name for name in names if name in plan.grid_of and name not in named)


def _lifetimes(graph: ir.Graph, last: str) -> dict[str, tuple[int, int]]:
    """Map each activation to the positions of its node and of its last reader.

    The position of a graph input is -1; the network's first output is read behind the last node.
    """
    nodes = list(graph)
    made = {str(value.name): -1 for value in graph.inputs}
    read: dict[str, int] = {}
    for k, node in enumerate(nodes):
        made.update({str(value.name): k for value in node.outputs if value.name})
        for value in (*node.inputs, *captured(node)):
            if value is not None and value.name in made:
                read[value.name] = k
    read[last] = len(nodes)
    return {name: (made[name], position) for name, position in read.items()}
