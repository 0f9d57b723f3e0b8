"""Find the blocks of a network that are reconstructed one after the other."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import by_name, captured, dims, is_constant
from qtool.quant.plan import QuantPlan, Site

MAX_LAYERS = 8


@dataclass(frozen=True)
class Block:
    """A part of the graph with one output, whose layers are reconstructed together.

    Attributes:
        sites: with weights, in graph order.
        entry: the value that it is computed from; None: the graph's inputs.
        exit: its output.
    """

    sites: tuple[Site, ...]
    entry: str | None
    exit: str

    @property
    def name(self) -> str:
        """Name of the first layer, and of the last one where there are several."""
        names = [site.name for site in self.sites]
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"


@dataclass(frozen=True)
class Region:
    """A single-entry, single-exit part of the graph: one block, or layers where it has too many.

    Attributes:
        entry: as in :class:`Block`.
        exit: the value that everything behind the region is computed from.
        blocks: in graph order.
    """

    entry: str | None
    exit: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class _Segment:
    """The part of the graph between two neighbouring cuts."""

    sites: tuple[Site, ...]
    exit: ir.Value


def find_regions(graph: ir.Graph, plan: QuantPlan, whole: bool = True) -> tuple[Region, ...]:
    """Divide a network into regions, in graph order; together they hold every site with weights.

    The graph is cut where a single value that depends on weights is alive. What depends on none,
    such as an attention mask, is computed again from the graph's inputs. The smallest part between
    two cuts that has 2 to 8 layers is a block; parts with one layer in a row are merged into
    blocks of two, and more where the output becomes smaller. A part with more layers (inputs
    across a whole encoder) is reconstructed layer by layer.

    Args:
        graph: sorted, with named nodes.
        plan: its sites with weights are reconstructed.
        whole: False: every block is one layer.

    Source: Li et al. 2021, "BRECQ", sec. 3.2 (blocks), arXiv:2102.05426.
    """
    segments, values = list(_segments(graph, plan)), by_name(graph)
    regions: list[Region] = []
    entry: str | None = None
    for group in _groups(segments) if whole else ([segment] for segment in segments):
        sites = tuple(site for segment in group for site in segment.sites)
        exit_name = group[-1].exit.name or ""
        block = Block(sites, entry, exit_name)
        # A layer in front of another output of the graph need not reach the exit.
        inside = {exit_name, *values_between(values, block)}
        one_exit = all(site.output in inside for site in sites)
        together = (whole or len(sites) == 1) and one_exit and len(sites) <= MAX_LAYERS
        blocks = [block] if together else _layers(sites)
        regions.append(Region(entry, exit_name, tuple(blocks)))
        entry = exit_name
    return tuple(regions)


def values_between(values: Mapping[str, ir.Value], block: Block) -> frozenset[str]:
    """Return the names of a block's entry and of all values computed behind it up to its exit.

    The exit is not among them. Without an entry, all values that the exit is computed from.
    """
    inside: set[str] = set()
    stack = [values[block.exit].producer()]
    while stack:
        node = stack.pop()
        for value in (*node.inputs, *captured(node)) if node is not None else ():
            if value is None or value.name in inside or is_constant(value):
                continue
            inside.add(value.name or "")
            if value.name != block.entry:
                stack.append(value.producer())
    return frozenset(inside)


def is_read_outside(values: Mapping[str, ir.Value], block: Block) -> bool:
    """Return whether a node that does not compute the block's exit reads its entry too."""
    if block.entry is None:
        return False
    inside = {block.exit, *values_between(values, block)} - {block.entry}
    readers = (node for node, _ in values[block.entry].uses())
    return any(inside.isdisjoint(out.name for out in node.outputs) for node in readers)


def has_narrow_activations(graph: ir.Graph, plan: QuantPlan) -> bool:
    """Return whether a computed value or an input of the graph has fewer than 8 bits.

    Args:
        graph: of the model.
        plan: its grids.
    """
    values = by_name(graph)
    specs = (plan.spec(name) for name in plan.grid_of if not is_constant(values.get(name)))
    return any(spec is not None and spec.bits < 8 for spec in specs)


def _layers(sites: Sequence[Site]) -> list[Block]:
    """Return one block for each layer."""
    return [Block((site,), site.inputs[0], site.output) for site in sites]


def _groups(segments: Sequence[_Segment]) -> Iterator[list[_Segment]]:
    """Merge neighbours with one layer each into pairs, and go on while the output shrinks."""
    group: list[_Segment] = []
    for segment in segments:
        if len(segment.sites) > 1:
            if group:
                yield group
            yield [segment]
            group = []
            continue
        if len(group) > 1 and not 0 < _size(segment.exit) < _size(group[-1].exit):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _size(value: ir.Value) -> int:
    """Return the elements of one sample; 0 where a dimension is unknown."""
    sizes = dims(value)
    if not sizes or not all(isinstance(size, int) for size in sizes[1:]):
        return 0
    return int(np.prod([size for size in sizes[1:] if isinstance(size, int)]))


def _segments(graph: ir.Graph, plan: QuantPlan) -> Iterator[_Segment]:
    """Yield the parts between cuts; each ends with the first cut behind its layers."""
    weighted = {site.name: site for site in plan.sites.values() if site.weight is not None}
    remaining, sites = len(weighted), []
    cuts = _cuts(graph, plan, weighted.keys())
    nodes = list(graph)
    last = [value for value in graph.outputs if value.producer() is not None]
    for position, node in enumerate(nodes):
        if node.name in weighted:
            sites.append(weighted[node.name])
            remaining -= 1
        if not sites:
            continue
        if position in cuts and remaining:
            yield _Segment(tuple(sites), cuts[position])
            sites = []
    if sites:
        # The rest of the network: its first output stands for all.
        yield _Segment(tuple(sites), last[0])


def _cuts(graph: ir.Graph, plan: QuantPlan, weighted: Collection[str]) -> dict[int, ir.Value]:
    """Map positions behind which one value that depends on weights is alive to that value."""
    last_reader: dict[str, int] = {}
    for position, node in enumerate(graph):
        for value in (*node.inputs, *captured(node)):
            if value is not None and value.name:
                last_reader[value.name] = position
    site_of = {name: site.nodes[-1] for site in plan.sites.values() for name in site.nodes}
    alive: dict[str, ir.Value] = {}
    dependent: set[str] = set()
    open_site: str | None = None
    cuts: dict[int, ir.Value] = {}
    for position, node in enumerate(graph):
        read = [v.name or "" for v in (*node.inputs, *captured(node)) if v is not None]
        if node.name in weighted or any(name in dependent for name in read):
            for value in node.outputs:
                dependent.add(value.name or "")
                alive[value.name or ""] = value
        alive = {n: v for n, v in alive.items() if last_reader.get(n, -1) > position}
        end = site_of.get(node.name or "", node.name)
        open_site = None if end == node.name else end
        if open_site is None and len(alive) == 1:
            cuts[position] = next(iter(alive.values()))
    return cuts
