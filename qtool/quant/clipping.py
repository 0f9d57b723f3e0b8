"""Convert the limits of Relu and Clip nodes to codes."""

import numpy as np
import onnx_ir as ir

from qtool.graph.queries import clip_limits
from qtool.quant.primitives import QuantParams, quantize


def code_limits(node: ir.Node, params: QuantParams) -> tuple[int, int] | None:
    """Codes between which a Relu or Clip keeps a value on a grid; None if computed at run time.

    Rounding and saturating keep the order of values, so clipping codes is clipping values.
    """
    lo, hi = clip_limits(node)
    if lo is None or hi is None:
        return None
    low, high = (int(quantize(np.asarray(v, np.float64), params)) for v in (lo, hi))
    return low, high
