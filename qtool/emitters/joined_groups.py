"""Join the groups of grouped convolutions with zero weights: equal sums, in faster kernels.

A kernel that multiplies group by group is slow where a group has few channels. ``count`` groups
become one whose weights are 0 wherever two of them would mix::

    W'[(i, o), (j, c), ...] = W[(i, o), c, ...] if i = j, else 0        i, j < count

The file keeps the codes of the groups; ``Where`` adds the zeros, and the runtime folds it at load.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.emitters.packing import Store
from qtool.graph.edit import set_attributes
from qtool.graph.queries import attribute, by_name, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import QuantParams
from qtool.targets.target import Target

# Wider activations are multiplied in floats, which zeros make slower.
EIGHT = 8
SHOWN = 4  # convolutions that a note names


@dataclass(frozen=True)
class JoinedGroups:
    """Groups of one convolution.

    Attributes:
        groups: of the float network.
        count: how many of them become one; divides ``groups``.
    """

    groups: int
    count: int

    def with_zeros(
        self, store: Store, name: str, codes: ir.Value, params: QuantParams, shift: int
    ) -> ir.Value:
        """Add the zeros to the codes of weights; return codes [O, count * C, ...].

        Args:
            store: receives constants and nodes.
            name: of the initializer; nodes are named after it.
            codes: [O, C, ...], of known type and shape.
            params: the grid of the codes.
            shift: added to every code and to the zero point.
        """
        if codes.shape is None:
            raise AssertionError(f"{name}: codes of unknown shape")
        outputs, inputs, *kernel = (int(str(size)) for size in codes.shape)
        zero = np.asarray(params.zero_point.flat[0] + shift, params.container)
        same = np.eye(self.count, dtype=bool)[:, None, :, None]
        # [joined groups, groups in one, outputs of a group, 1, products of an output]
        blocks = [-1, self.count, outputs // self.groups, 1, inputs * math.prod(kernel)]
        value = _reshaped(store, codes, blocks, f"{name}/groups")
        operands = [store.constant(f"same_group_of_{self.count}", same), value]
        operands.append(store.constant(f"zero_code_{zero}_of_{zero.dtype}", zero))
        value = store.step("Where", operands, f"{name}/joined_groups")
        shape = [outputs, self.count * inputs, *kernel]
        joined = _reshaped(store, value, shape, f"{name}_joined")
        joined.type, joined.shape = codes.type, ir.Shape(shape)
        return joined


def _reshaped(store: Store, value: ir.Value, shape: list[int], out: str) -> ir.Value:
    extents = "_".join(map(str, shape))
    sizes = store.constant(f"shape_{extents}", np.array(shape, np.int64))
    return store.step("Reshape", [value, sizes], out)


def join_groups(graph: ir.Graph, plan: QuantPlan, target: Target) -> dict[str, JoinedGroups]:
    """Lower the number of groups of convolutions whose groups have few channels.

    The caller adds the zeros to their weights. Depthwise convolutions have kernels of their own.

    Args:
        graph: changed in place.
        plan: frozen.
        target: its ``group_channels`` is the number of channels that a group shall have.

    Returns:
        Initializer name of weights -> their groups.
    """
    joined: dict[str, JoinedGroups] = {}
    if not target.group_channels:
        return joined
    nodes, values = nodes_by_name(graph), by_name(graph)
    for site in plan.sites.values():
        if site.op != "Conv" or plan.qparams(site.inputs[0]).spec.bits > EIGHT:
            continue
        node, weight = nodes[site.name], values[site.weight or ""]
        groups = int(attribute(node, "group", 1))
        count = _count(groups, site, plan, target.group_channels)
        # Weights that something else reads too stay as they are.
        if count > 1 and len(weight.uses()) == 1:
            set_attributes(node, group=groups // count)
            joined[site.weight or ""] = JoinedGroups(groups, count)
    return joined


def _count(groups: int, site: Site, plan: QuantPlan, channels: int) -> int:
    """Return how many groups shall become one, so that it has about ``channels`` channels.

    Channels are the geometric mean of inputs and outputs; of two counts that are equally near, the
    larger one is returned.
    """
    weight = site.weight or ""
    zero_points, codes = plan.qparams(weight).zero_point, plan.codes[weight]
    outputs, inputs = codes.shape[0] // groups, codes.shape[1]
    if groups == 1 or inputs == outputs == 1 or np.ptp(zero_points):
        return 1
    width = math.sqrt(inputs * outputs)

    def distance(count: int) -> tuple[float, int]:
        return round(abs(math.log(count * width / channels)), 6), -count

    return min((n for n in range(1, groups + 1) if groups % n == 0), key=distance)


def joined_notes(model: ir.Model, emitted: ir.Model) -> list[str]:
    """Return a note for the report on convolutions that a file has with fewer groups."""
    groups = {node.name: attribute(node, "group", 1) for node in model.graph}
    names = [
        f"{node.name} {groups[node.name]} -> {attribute(node, 'group', 1)}"
        for node in emitted.graph
        if node.op_type in ("Conv", "QLinearConv")
        and attribute(node, "group", 1) < groups.get(node.name, 1)
    ]
    if not names:
        return []
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return [f"convolutions whose groups are joined by zero weights: {len(names)} ({shown})"]
