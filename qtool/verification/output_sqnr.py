"""Quality of every output and of the quantities that an output carries, against the float model."""

import onnx_ir as ir

from qtool.graph.output_groups import channel_groups
from qtool.metrics.fidelity import power_db
from qtool.report.layer_schema import OutputGroup, OutputQuality
from qtool.verification.tasks import ComparedOutputs, Slice


def output_slices(model: ir.Model) -> tuple[Slice, ...]:
    """Return the slices of outputs to compare: each output as a whole, then its groups.

    Args:
        model: the rewritten float graph.
    """
    whole = [Slice(value.name or "") for value in model.graph.outputs]
    groups = [Slice(g.output, g.axis, g.start, g.stop, g.source) for g in channel_groups(model)]
    return (*whole, *groups)


def outputs_part(slices: tuple[Slice, ...], compared: ComparedOutputs) -> list[OutputQuality]:
    """Return the part of the report; outputs that cannot be compared are named without a number.

    Args:
        slices: see :func:`output_slices`.
        compared: their powers, in the same order.
    """
    rows = {}
    for part, powers in zip(slices, compared.powers, strict=True):
        db = None if powers is None else power_db(*powers)
        db = None if db is None else round(db, 4)
        if part.axis is None:
            rows[part.output] = OutputQuality(
                name=part.output, sqnr_db=db, compared=powers is not None
            )
        else:
            group = OutputGroup(
                axis=part.axis, start=part.start, stop=part.stop, source=part.source, sqnr_db=db
            )
            row = rows[part.output]
            rows[part.output] = row.model_copy(update={"groups": [*(row.groups or ()), group]})
    return list(rows.values())
