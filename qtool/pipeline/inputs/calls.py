"""Files that hold one call each, where the network does not compute the samples in them apart."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.data import READERS, DataSection, InputSpec
from qtool.data.inputs import constant_arrays, fixed_batch, samples_in
from qtool.graph.compared_output import evaluated_output
from qtool.graph.queries import parameters
from qtool.pipeline.input_checks import MAX_PARAMETERS, TOLERANCE
from qtool.runtime.ort_session import OrtSession

# Samples of the first file that are computed alone and compared with the whole file.
COMPARED = 4


def feed_files_whole(
    section: DataSection, model: ir.Model, inputs: Mapping[str, InputSpec]
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Return the inputs without batch axes where each file of a folder is one call, and notes.

    It is one where the network computes the first file as a whole, but not the same sample by
    sample: the nodes of a graph or the steps of a sequence lie along its first axis.

    Args:
        section: names the folder, its paths absolute.
        model: the float graph as it was read; unchanged.
        inputs: the model's inputs, with the axes that the model and the data suggest.
    """
    unchanged = dict(inputs)
    if section.loop is not None or fixed_batch(inputs.values()) is not None:
        return unchanged, ()
    fed = {name: spec for name, spec in inputs.items() if spec.constant is None}
    arrays, output = READERS[section.reader].first_file(section, fed), evaluated_output(model)
    if arrays is None or output is None or parameters(model.graph) > MAX_PARAMETERS:
        return unchanged, ()
    count = samples_in(arrays, fed.values())
    if count < 2:
        return unchanged, ()
    call = {**arrays, **constant_arrays(inputs, count)}
    if _computes_samples_apart(model, output, call, inputs):
        return unchanged, ()
    note = "each file is one call, as the network does not compute the samples in it apart"
    return {name: replace(spec, batch_axis=None) for name, spec in inputs.items()}, (note,)


def _computes_samples_apart(
    model: ir.Model, output: str, call: Mapping[str, np.ndarray], inputs: Mapping[str, InputSpec]
) -> bool:
    """Return whether an output of a call is that of its samples, one behind the other.

    True too where the network cannot compute the call.
    """
    count = samples_in(call, inputs.values())
    with OrtSession(model, [output], level="basic") as session:
        try:
            whole = session(call)[output]
        except Exception:  # the runtime raises one class per status
            return True
        parts = []
        for k in range(min(COMPARED, count)):
            row = {
                name: array if (axis := inputs[name].batch_axis) is None else array.take([k], axis)
                for name, array in call.items()
            }
            try:
                parts.append(session(row)[output])
            except Exception:  # the runtime raises one class per status
                return False
    if 0 in (whole.ndim, parts[0].ndim):
        return False
    if len(whole) * len(parts) != count * sum(len(part) for part in parts):
        return False
    rows = np.concatenate(parts)
    scale = float(np.abs(rows).max(initial=0)) if rows.dtype.kind == "f" else 0.0
    first = whole[: len(rows)]
    return first.shape == rows.shape and np.allclose(
        first, rows, rtol=0, atol=TOLERANCE * scale, equal_nan=True
    )
