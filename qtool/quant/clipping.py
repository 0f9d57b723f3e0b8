"""Convert the limits of Relu and Clip nodes to codes."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import clip_limits
from qtool.quant.primitives import QuantParams, quantize


def code_limits(node: ir.Node, params: QuantParams) -> tuple[int, int] | None:
    """Return the lowest and highest code that a Relu or Clip passes; None if computed at run time.

    Rounding and saturation are monotonic, so clipping codes is the same as clipping values.

    Args:
        node: a Relu or Clip.
        params: grid of its output, one scale.
    """
    lo, hi = clip_limits(node)
    if lo is None or hi is None:
        return None
    low, high = (int(quantize(np.asarray(v, np.float64), params)) for v in (lo, hi))
    return low, high
