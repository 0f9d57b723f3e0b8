"""Schedules: the nodes to run for some feeds and outputs, their slots, and when each is freed."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import onnx_ir as ir

from qtool.errors import DataError, suggest
from qtool.graph.queries import by_name, captured


@dataclass(frozen=True, slots=True)
class Place:
    """Slot of a value; ``raw`` is the slot of the value before ``observe``, 0 if unread."""

    value: ir.Value
    slot: int
    raw: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One node: the slots it reads, writes and frees. Slot 0 always holds None."""

    node: ir.Node
    run: Callable[..., Any]
    options: dict[str, Any]
    values: tuple[ir.Value | None, ...]
    reads: tuple[int, ...]
    loads: tuple[Place, ...]
    writes: tuple[tuple[int, Place], ...]
    frees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """All steps of calls with one set of feeds and outputs."""

    steps: tuple[Step, ...]
    fed: tuple[Place, ...]
    loads: tuple[Place, ...]
    frees: tuple[int, ...]
    outputs: tuple[tuple[str, int], ...]
    slots: int


def _reads(node: ir.Node) -> tuple[ir.Value | None, ...]:
    own = [v if v is not None and v.name else None for v in node.inputs]
    return (*own, *captured(node))


class _Builder:
    """Slots of one schedule under construction."""

    def __init__(self, fed: Collection[str], raw: Collection[tuple[str, str]]) -> None:
        self.fed, self.raw = fed, raw
        self.raw_values = {value for _, value in raw}
        self.places: dict[str, Place] = {}
        self.slots = 1

    def place(self, value: ir.Value) -> Place:
        name = str(value.name)
        if name not in self.places:
            raw = name in self.raw_values
            self.places[name] = Place(value, self.slots, self.slots + 1 if raw else 0)
            self.slots += 2 if raw else 1
        return self.places[name]

    def read(self, node: ir.Node, value: ir.Value | None) -> int:
        if value is None:
            return 0
        place = self.place(value)
        return place.raw if (node.name, value.name) in self.raw else place.slot


class GraphIndex:
    """Values and nodes of a graph whose nodes do not change, by name and by position.

    Attributes:
        values: name -> value.
        nodes: in order.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.values, self.nodes = by_name(graph), tuple(graph)
        self._maker = {str(o.name): k for k, node in enumerate(self.nodes) for o in node.outputs}

    def needed(
        self, fed: Collection[str], outputs: Sequence[ir.Value]
    ) -> tuple[list[tuple[ir.Node, tuple[ir.Value | None, ...]]], list[ir.Value]]:
        """Return the nodes (with their reads) that outputs need, in order, and the start values.

        No other node is looked at: a call for one layer costs the same in a large graph.
        """
        starts: dict[str, ir.Value] = {}
        pending: list[int] = []  # positions, negative: the last node comes first
        seen: set[int] = set()

        def require(value: ir.Value | None) -> None:
            if value is None or value.name in fed:
                return
            position = self._maker.get(str(value.name))
            if position is None:
                starts.setdefault(str(value.name), value)
            elif position not in seen:
                seen.add(position)
                heappush(pending, -position)

        for value in outputs:
            require(value)
        nodes = []
        while pending:
            node = self.nodes[-heappop(pending)]
            reads = _reads(node)
            nodes.append((node, reads))
            for read in reads:
                require(read)
        return nodes[::-1], list(starts.values())


def build(
    index: GraphIndex,
    fed: Sequence[str],
    outputs: Sequence[str],
    raw: Collection[tuple[str, str]],
    bind: Callable[[ir.Node], tuple[Callable[..., Any], dict[str, Any]]],
) -> Schedule:
    """Schedule a call that is fed ``fed`` and returns ``outputs``.

    Args:
        index: of a graph that is topologically sorted, as ONNX demands.
        fed: names of values that the caller provides.
        outputs: names of values to return.
        raw: (node name, value name) edges that read the value before ``observe``.
        bind: returns a node's function and the keyword arguments made of its attributes.

    Raises:
        DataError: a name is not in the graph, or a required graph input is not fed.
    """
    values = index.values
    for role, names in (("fed", fed), ("requested", outputs), ("read raw", [v for _, v in raw])):
        for name in names:
            if name not in values:
                hint = suggest(name, values)
                raise DataError(f"the graph has no value {name!r}, which was {role}{hint}")
    needed, starts = index.needed(frozenset(fed), [values[n] for n in outputs])
    for value in starts:
        if not value.is_initializer():
            raise DataError(
                f"found no data for {value.name!r}, which the outputs need; fed: "
                f"{', '.join(fed) or 'nothing'}; feed it too"
            )
    return _assemble(
        needed, [values[n] for n in fed], [values[n] for n in outputs], starts, raw, bind
    )


def _assemble(
    needed: list[tuple[ir.Node, tuple[ir.Value | None, ...]]],
    fed: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    starts: Sequence[ir.Value],
    raw: Collection[tuple[str, str]],
    bind: Callable[[ir.Node], tuple[Callable[..., Any], dict[str, Any]]],
) -> Schedule:
    builder = _Builder({str(v.name) for v in fed}, raw)
    fed_places = tuple(builder.place(v) for v in fed)
    reads = [tuple(builder.read(node, v) for v in values) for node, values in needed]
    returned = [(str(v.name), builder.place(v).slot) for v in outputs]
    unloaded = {str(v.name) for v in starts}
    last = {slot: i for i, slots in enumerate(reads) for slot in slots}
    for _, slot in returned:
        last.pop(slot, None)
    persistent = {0, *(slot for _, slot in returned)}
    steps = []
    for i, (node, values) in enumerate(needed):
        loads = [builder.place(v) for v in values if v is not None and v.name in unloaded]
        loads = list({p.slot: p for p in loads}.values())
        unloaded -= {str(p.value.name) for p in loads}
        writes = [
            (k, builder.places[str(o.name)])
            for k, o in enumerate(node.outputs)
            if o.name and o.name in builder.places and o.name not in builder.fed
        ]
        fresh = [s for p in (*loads, *(p for _, p in writes)) for s in (p.slot, p.raw)]
        frees = {s for s in reads[i] if last.get(s) == i}
        frees |= {s for s in fresh if s not in last and s not in persistent}
        run, options = bind(node)
        steps.append(
            Step(
                node,
                run,
                options,
                values,
                reads[i],
                tuple(loads),
                tuple(writes),
                tuple(frees - {0}),
            )
        )
    rest = tuple(builder.place(v) for v in starts if v.name in unloaded)
    unread = tuple(
        s for p in fed_places for s in (p.slot, p.raw) if s not in last and s not in persistent
    )
    return Schedule(tuple(steps), fed_places, rest, unread, tuple(returned), builder.slots)
