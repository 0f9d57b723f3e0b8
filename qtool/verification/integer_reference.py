"""What the captures of a file say of integer hardware: the reference without floats, saturation."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.quant.plan import QuantPlan
from qtool.report.schema import IntegerOnly
from qtool.weights.int16_saturation import simulate


def integer_only(
    model: ir.Model,
    plan: QuantPlan,
    folder: Path,
    names: Mapping[str, str],
    outputs: Sequence[np.ndarray],
) -> IntegerOnly:
    """Run the plan without floats beside the file.

    Args:
        model: the rewritten graph.
        plan: frozen.
        folder: captures ``0.npz`` ..., as parity reads them.
        names: what was captured, and which of the plan's values it is.
        outputs: the file's first output for each capture.
    """
    from qtool.simulation.integer_network import IntegerKernels, IntegerNetwork
    from qtool.verification.parity import compare

    counts = compare(model, plan, folder, names, len(outputs), IntegerKernels).integer
    whole, same = IntegerNetwork(model, plan), []
    first = model.graph.outputs[0].name or ""
    for (inputs, _), wanted in zip(_captures(folder, names, len(outputs)), outputs, strict=True):
        got = whole(inputs)[first][: len(wanted)]
        if got.ndim > 1 and got.shape[1] > 1:
            same.append(np.mean(got.argmax(1) == wanted.argmax(1)))
    return IntegerOnly(
        max_lsb=counts.largest,
        share_off=counts.share,
        agreement=round(100 * float(np.mean(same)), 4) if same else None,
    )


def saturating_layers(
    model: ir.Model, plan: QuantPlan, folder: Path, names: Mapping[str, str], saved: int
) -> list[str]:
    """Sentences about what int16 pairs take from the sums of layers, on captured samples."""
    _, seen = next(_captures(folder, names, saved))
    codes = {value: array for value, array in seen.items() if array.dtype.kind in "iu"}
    return [
        f"{found.name}: {100 * found.share:.2g} % of its sums saturate, by up to "
        f"{100 * found.largest:.2g} % of the largest"
        for found in simulate(model, plan, codes)
    ] or ["no pair of products saturates on the captured samples"]


def _captures(
    folder: Path, names: Mapping[str, str], saved: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """(inputs, watched values by the plan's names) of each captured batch."""
    for k in range(saved):
        with np.load(folder / f"{k}.npz") as archive:
            inputs = {n[2:]: archive[n] for n in archive.files if n.startswith("i:")}
            seen = {value: archive[f"o{j}"] for j, value in enumerate(names.values())}
            fed = {n[2:]: archive[n] for n in archive.files if n.startswith("c:")}
            yield inputs, seen | fed
