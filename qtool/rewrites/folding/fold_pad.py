"""Folding of Pad nodes into the pads of the convolution after them."""

import onnx_ir as ir

from qtool.graph.edit import drop, set_attributes
from qtool.graph.queries import attribute, constant, readers
from qtool.rewrites.rewrite import IsInteger


def fold_pad(model: ir.Model, is_integer: IsInteger) -> int:
    """Fold a Pad with constant zeros on spatial axes into the pads of all its Conv readers.

    Asymmetric pads are folded as well. A Pad between quantized layers costs a DequantizeLinear, a
    float copy and a QuantizeLinear; on MobileNetV2 the run time is 1.4 times as long with them.
    """
    done = 0
    for pad in list(model.graph):
        pads = _spatial_zero_pads(pad)
        out = pad.outputs[0]
        if pads is None or out.is_graph_output() or pad.inputs[0] is None:
            continue
        convs = readers(out)
        if not convs or not all(_accepts_pads(conv, out, len(pads)) for conv in convs):
            continue
        # Pad: begins of all axes, then ends. Conv: the same for spatial axes, two fewer each.
        half = len(pads) // 2
        for conv in convs:
            own = attribute(conv, "pads") or (0,) * (2 * (half - 2))
            begin_pads = [a + b for a, b in zip(pads[2:half], own[: half - 2], strict=True)]
            end_pads = [a + b for a, b in zip(pads[half + 2 :], own[half - 2 :], strict=True)]
            set_attributes(conv, auto_pad="NOTSET", pads=[*begin_pads, *end_pads])
        ir.convenience.replace_all_uses_with(out, pad.inputs[0])
        drop(pad)
        done += 1
    return done


def _accepts_pads(conv: ir.Node, out: ir.Value, length: int) -> bool:
    """Return whether a reader of a Pad is a Conv with explicit pads that reads it as data only."""
    auto = attribute(conv, "auto_pad", "NOTSET")
    return (
        conv.op_type == "Conv"
        and conv.inputs[0] is out
        and auto in ("NOTSET", "VALID")
        and all(v is not out for v in conv.inputs[1:])
        and len(attribute(conv, "pads") or (0,) * (length - 4)) == length - 4
    )


def _spatial_zero_pads(pad: ir.Node) -> list[int] | None:
    """Return the pads (begins, then ends) of a Pad with zeros on spatial axes only, else None."""
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
