"""The patterns that a target can name in ``float_patterns``: what matches one stays float."""

from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from qtool.annotation.box_decode import box_decode_reasons
from qtool.annotation.sentinels import sentinel_reasons
from qtool.annotation.spectrum import spectrum_reasons

# Nodes of the main graph, in order -> reasons by node name.
FloatPattern = Callable[[Sequence[ir.Node]], dict[str, str]]

FLOAT_PATTERNS: dict[str, FloatPattern] = {
    "attention_mask": sentinel_reasons,
    "box_decode": box_decode_reasons,
    "spectrum": spectrum_reasons,
}


def pattern_reasons(nodes: Sequence[ir.Node], names: Iterable[str]) -> dict[str, str]:
    """Map each node that one of the named patterns matches to the reason why it stays float.

    Args:
        nodes: of the main graph, in order.
        names: of FLOAT_PATTERNS; the first that matches a node gives the reason.
    """
    reasons: dict[str, str] = {}
    for name in names:
        reasons = {**FLOAT_PATTERNS[name](nodes), **reasons}
    return reasons
