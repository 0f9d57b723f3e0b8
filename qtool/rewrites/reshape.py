"""Replacement of computed Reshape shapes by constants."""

import math

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import add_constant
from qtool.graph.queries import constant, dims
from qtool.rewrites.cleanup import remove_unused
from qtool.rewrites.rewrite import IsInteger

Dims = tuple[int | str | None, ...]


def make_reshapes_static(model: ir.Model, is_integer: IsInteger) -> int:
    """Replace the computed shape of a Reshape by a constant with at most one -1.

    Exporters compute the shape of a flatten or view from the batch size. Where all sizes but one
    are known, -1 has the same meaning, provided that no size is 0: in a Reshape a 0 copies the size
    of the input. Inference leaves a -1 of the shape unknown beside an open batch size, [N, T, 384]
    to [N, T, 12, -1]; it follows from the sizes that both sides do not share.
    """
    done = 0
    for node in list(model.graph):
        result = dims(node.outputs[0])
        if node.op_type != "Reshape" or constant(node.inputs[1]) is not None or result is None:
            continue
        result = _resolved(dims(node.inputs[0]), result)
        sizes = [d if isinstance(d, int) else -1 for d in result]
        if sizes.count(-1) > 1 or 0 in sizes:
            continue
        node.replace_input_with(1, add_constant(model.graph, f"{node.name}.shape", np.array(sizes)))
        node.outputs[0].shape = ir.Shape(result)
        done += 1
    if done:
        remove_unused(model)
    return done


def _resolved(source: Dims | None, result: Dims) -> Dims:
    """Return the sizes of a Reshape's result, with one that follows from those of its input."""
    remaining = [d for d in source or (None,) if not isinstance(d, int)]
    unknown = []
    for k, size in enumerate(result):
        if size is not None and size in remaining:
            remaining.remove(size)
        elif not isinstance(size, int):
            unknown.append(k)
    static, total = (math.prod(d for d in s or () if isinstance(d, int)) for s in (result, source))
    if remaining or len(unknown) != 1 or not static or total % static:
        return result
    return tuple(total // static if k in unknown else size for k, size in enumerate(result))
