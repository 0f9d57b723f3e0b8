"""Explicit zero padding into the pads of the convolution behind it."""

from collections.abc import Callable

import onnx_ir as ir

from qtool.graph.edit import drop, set_attributes
from qtool.graph.queries import attribute, constant, readers


def fold_pad(model: ir.Model, quantized: Callable[[ir.Node], bool]) -> int:
    """Move a constant zero Pad of spatial axes into its Conv readers (asymmetric pads included).

    A Pad between quantized layers costs Q, DQ and a float copy: on MobileNetV2 1.4 x the run time.
    """
    done = 0
    for pad in list(model.graph):
        pads = _spatial_zero_pads(pad)
        out = pad.outputs[0]
        if pads is None or out.is_graph_output() or pad.inputs[0] is None:
            continue
        convs = readers(out)
        if not convs or not all(_can_take(conv, out, len(pads)) for conv in convs):
            continue
        half = len(pads) // 2
        for conv in convs:
            own = attribute(conv, "pads") or (0,) * (2 * (half - 2))
            begins = [a + b for a, b in zip(pads[2:half], own[: half - 2], strict=True)]
            ends = [a + b for a, b in zip(pads[half + 2 :], own[half - 2 :], strict=True)]
            set_attributes(conv, auto_pad="NOTSET", pads=[*begins, *ends])
        ir.convenience.replace_all_uses_with(out, pad.inputs[0])
        drop(pad)
        done += 1
    return done


def _can_take(conv: ir.Node, out: ir.Value, length: int) -> bool:
    auto = attribute(conv, "auto_pad", "NOTSET")
    return (
        conv.op_type == "Conv"
        and conv.inputs[0] is out
        and auto in ("NOTSET", "VALID")
        and all(v is not out for v in conv.inputs[1:])
        and len(attribute(conv, "pads") or (0,) * (length - 4)) == length - 4
    )


def _spatial_zero_pads(pad: ir.Node) -> list[int] | None:
    """All pads (begins then ends) of a Pad with constant zeros on spatial axes only; else None."""
    if pad.op_type != "Pad" or attribute(pad, "mode", "constant") != "constant":
        return None
    pads = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    if pads is None or (len(pad.inputs) > 3 and pad.inputs[3] is not None):
        return None
    filled = constant(fill)
    if fill is not None and (filled is None or filled.any()):
        return None
    half = len(pads) // 2
    inner = [*pads[:2], *pads[half : half + 2]]
    return None if any(inner) or min(pads) < 0 or half < 3 else [int(p) for p in pads]
