"""Find out whether a model computes the samples of a batch independently, before any work.

Networks with a state (LSTM, GRU), and reshapes that exporters wrote for one sample, declare a batch
axis that they cannot use: a run fails on two samples, or mixes them.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from qtool.data import Dataset, InputSpec
from qtool.errors import QtoolError, UnsupportedError
from qtool.graph.queries import parameters
from qtool.runtime.ort_session import OrtSession

# Share of the largest output by which a sample may differ between a batch and a run of its own:
# kernels sum in another order.
TOLERANCE = 1e-2

# Parameters from which another session of the model costs more time and memory than it is worth.
MAX_PARAMETERS = 200_000_000


def check_batches(specs: Mapping[str, InputSpec], name: str) -> None:
    """Refuse inputs that fix different batch sizes.

    Args:
        specs: the model's inputs.
        name: of the model, for messages.

    Raises:
        UnsupportedError: one call would need different numbers of samples.
    """
    sizes = {spec.batch: spec for spec in specs.values() if spec.batch is not None}
    if len(sizes) < 2:
        return
    shown = " and ".join(spec.describe() for spec in list(sizes.values())[:2])
    raise UnsupportedError(
        f"model {name}: its inputs {shown} fix different batch sizes; the first axis of every "
        "input must count the samples: export a state such as [layers, batch, hidden] with the "
        "batch first, or make it a constant"
    )


def probe_batch(
    model: ir.Model, specs: Mapping[str, InputSpec], dataset: Dataset, name: str
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Run the float model on one sample and on two.

    Args:
        model: the float graph as it was read; unchanged.
        specs: its inputs.
        dataset: samples for it.
        name: of the model, for messages.

    Returns:
        The inputs, with a batch fixed to 1 where the model computes single samples only, and notes
        for the report.

    Raises:
        UnsupportedError: the model cannot run on a sample.
    """
    unchanged = dict(specs)
    if any(spec.batch is not None for spec in specs.values()):
        return unchanged, ()
    if parameters(model.graph) > MAX_PARAMETERS or not specs:
        return unchanged, ()
    first = _rows(dataset, specs, [0])
    with OrtSession(model, level="basic") as session:
        try:
            single = session(first)
        except Exception as error:  # the runtime raises one class per status
            shapes = {key: list(array.shape) for key, array in first.items()}
            raise UnsupportedError(
                f"model {name}: ONNX Runtime cannot run it on one sample, {shapes}: {error}; check "
                "the data's sizes, or export it again"
            ) from error
        if dataset.count < 2:
            return unchanged, ()
        reason = _reason(session, single, dataset, specs)
    if not reason:
        return unchanged, ()
    fixed = {key: replace(spec, shape=(1, *spec.shape[1:])) for key, spec in specs.items()}
    return fixed, (f"samples are computed one by one: {reason}",)


def _rows(
    dataset: Dataset, specs: Mapping[str, InputSpec], indices: list[int]
) -> dict[str, np.ndarray]:
    batch = next(iter(dataset.take(indices).batches(len(indices))))
    return {name: batch[name] for name in specs}


def _reason(
    session: OrtSession,
    single: Mapping[str, np.ndarray],
    dataset: Dataset,
    specs: Mapping[str, InputSpec],
) -> str:
    """Return why two samples cannot share a batch; "" where they can."""
    try:
        pair = session(_rows(dataset, specs, [0, dataset.count - 1]))
    except (QtoolError, MemoryError):
        return ""  # samples of several sizes are refused later, by name
    except Exception:  # the runtime raises one class per status
        return "the model fails on a batch of two"
    other = session(_rows(dataset, specs, [dataset.count - 1]))
    for name, array in pair.items():
        alone = (single[name], other[name])
        if array.dtype.kind != "f" or any(a.ndim == 0 or len(a) != 1 for a in alone):
            continue
        joined = np.concatenate(alone) if alone[0].shape[1:] == alone[1].shape[1:] else None
        if joined is None or not np.isfinite(joined).all():
            continue  # calibration refuses NaN and infinity, by name
        if joined.shape != array.shape:
            return f'the output "{name}" has no row for each sample of a batch'
        scale = float(np.abs(joined).max()) if joined.size else 0.0
        if not np.allclose(array, joined, rtol=0, atol=TOLERANCE * scale + 1e-6, equal_nan=True):
            return f'the output "{name}" of a sample depends on the rest of its batch'
    return ""
