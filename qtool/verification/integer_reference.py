"""Compare a file with the integer-only reference, and measure saturation, on captured outputs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.graph.compared_output import evaluated_output
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
    """Compare the integer-only reference with the file, layer by layer and end to end.

    Args:
        model: the rewritten graph.
        plan: frozen.
        folder: holds the captures ``0.npz`` ..., see :func:`qtool.verification.parity.compare`.
        names: captured value of the file -> value of the plan.
        outputs: the file's evaluated output for each capture, [rows, ...].

    Returns:
        The largest difference of codes, the share that differ, and how often both choose the same
        class in % (None where the output has no classes).
    """
    from qtool.simulation.integer_network import IntegerKernels, IntegerNetwork
    from qtool.verification.parity import compare

    counts = compare(model, plan, folder, names, len(outputs), IntegerKernels).integer
    network, same = IntegerNetwork(model, plan), []
    evaluated = evaluated_output(model) or ""
    for (inputs, _), expected in zip(_captures(folder, names, len(outputs)), outputs, strict=True):
        actual = network(inputs)[evaluated][: len(expected)]  # without the rows that fill the batch
        if actual.ndim > 1 and actual.shape[1] > 1:
            same.append(np.mean(actual.argmax(1) == expected.argmax(1)))
    return IntegerOnly(
        max_lsb=counts.largest,
        share_off=counts.share,
        agreement=round(100 * float(np.mean(same)), 4) if same else None,
    )


def saturating_layers(
    model: ir.Model, plan: QuantPlan, folder: Path, names: Mapping[str, str], saved: int
) -> list[str]:
    """Describe the error that saturating int16 pairs cause in each layer, on the first capture.

    Args:
        model: the rewritten graph.
        plan: frozen.
        folder: holds the captures ``0.npz`` ...
        names: captured value of the file -> value of the plan.
        saved: number of captures.
    """
    _, outputs = next(_captures(folder, names, saved))
    codes = {value: array for value, array in outputs.items() if array.dtype.kind in "iu"}
    return [
        f"{layer.name}: {100 * layer.share:.2g} % of its sums saturate, by up to "
        f"{100 * layer.largest:.2g} % of the largest"
        for layer in simulate(model, plan, codes)
    ] or ["no pair of products saturates on the captured samples"]


def _captures(
    folder: Path, names: Mapping[str, str], saved: int
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield the inputs, and the captured outputs by the plan's names, of each batch."""
    for k in range(saved):
        with np.load(folder / f"{k}.npz") as archive:
            inputs = {n[2:]: archive[n] for n in archive.files if n.startswith("i:")}
            outputs = {value: archive[f"o{j}"] for j, value in enumerate(names.values())}
            input_codes = {n[2:]: archive[n] for n in archive.files if n.startswith("c:")}
            yield inputs, outputs | input_codes
