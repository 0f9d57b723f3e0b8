"""Turn a profile of the file into times by kernel and by node."""

import re
from collections import Counter
from collections.abc import Sequence

from qtool.report.latency_schema import KernelTime, Latency, NodeTime
from qtool.verification.tasks import ProfileResult

# Nodes that the report lists.
SLOWEST = 12


def node_times(profile: ProfileResult) -> list[NodeTime]:
    """Return the time of every node, slowest first."""
    times = [
        NodeTime(name=_without_token(name), op=profile.operators[name], ms=milliseconds)
        for name, milliseconds in profile.milliseconds.items()
    ]
    return sorted(times, key=lambda time: -time.ms)


def kernel_times(nodes: Sequence[NodeTime]) -> list[KernelTime]:
    """Return the time of every kernel over all its nodes, slowest first."""
    counts = Counter(node.op for node in nodes)
    sums = {op: sum(node.ms for node in nodes if node.op == op) for op in counts}
    return [
        KernelTime(op=op, nodes=counts[op], ms=round(milliseconds, 6))
        for op, milliseconds in sorted(sums.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def with_kernel_times(latency: Latency, profile: ProfileResult) -> Latency:
    """Return the latency with the times of kernels and of the slowest nodes.

    Args:
        latency: of the same file.
        profile: of the quantized file.
    """
    nodes = node_times(profile)
    update = {"kernels": kernel_times(nodes) or None, "nodes": nodes[:SLOWEST] or None}
    return latency.model_copy(update=update)


def _without_token(name: str) -> str:
    """Return the node's name without the number that the runtime adds to fused nodes."""
    return re.sub(r"_token_\d+$", "", name)
