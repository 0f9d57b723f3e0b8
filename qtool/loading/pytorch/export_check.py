"""Does an exported graph compute what torch computes?"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import ModelError, UnsupportedError
from qtool.loading.pytorch.example_inputs import by_name
from qtool.loading.pytorch.export import first_line
from qtool.runtime.ort_session import OrtSession

# Largest accepted relative difference between torch and the exported graph, by the least exact type
# that torch computes in; 16-bit floats become float32 in the graph, so torch alone rounds to them.
MAX_DIFFERENCE = {None: 1e-3, ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}

Run = Callable[[Mapping[str, torch.Tensor]], Any]


def tried(run: Run, feeds: Mapping[str, torch.Tensor], name: str) -> Any:
    """What the network returns for these inputs.

    Raises:
        ModelError: it fails on them.
    """
    try:
        with torch.no_grad():
            return run(feeds)
    except Exception as error:
        shown = ", ".join(
            f"{k} {str(v.dtype).removeprefix('torch.')}{list(v.shape)}" for k, v in feeds.items()
        )
        raise ModelError(
            f"model {name}: the network fails on random inputs {shown}: {first_line(error)}; "
            "check the shapes and dtypes under `input`"
        ) from error


def coarsest(model: ir.Model) -> ir.DataType | None:
    """The least exact 16-bit float type in an exported graph, or None where there is none."""
    values = [v for node in model.graph.all_nodes() for v in (*node.inputs, *node.outputs)]
    found = {v.dtype for v in values if v is not None}
    return next((t for t in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16) if t in found), None)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """As numpy, which has no bfloat16."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def compared(
    run: Run,
    feeds: Mapping[str, torch.Tensor],
    model: ir.Model,
    name: str,
    computed_in: ir.DataType | None = None,
) -> str:
    """How far the graph is from torch on random inputs, as a note.

    Args:
        run: the network.
        feeds: tensors by input name.
        model: the graph, in float32.
        name: for messages.
        computed_in: see :func:`coarsest`.

    Raises:
        UnsupportedError: too far.
    """
    wanted = [_array(v) for v in by_name(tried(run, feeds, name)).values()]
    inputs = [v.name or "" for v in model.graph.inputs]
    arrays = {given: _array(tensor) for given, tensor in feeds.items()}
    fed = arrays
    if set(inputs) != set(arrays):  # a program's inputs are renamed, never reordered
        fed = dict(zip(inputs, arrays.values(), strict=True))
    try:
        with OrtSession(model) as session:
            found = list(session(fed).values())
    except Exception as error:
        raise UnsupportedError(
            f"the exported graph does not run in ONNX Runtime ({first_line(error)}); export the "
            "network yourself and give the .onnx file"
        ) from error
    same = len(found) == len(wanted) and all(
        a.shape == b.shape for a, b in zip(found, wanted, strict=False)
    )
    worst = max(map(_difference, found, wanted), default=0.0) if same else np.inf
    shown = f"{worst:.1e}" if same else "their shapes differ"
    rows = max((len(v) for v in fed.values() if v.ndim), default=1)
    limit = MAX_DIFFERENCE[computed_in]
    if not worst <= limit:
        raise UnsupportedError(
            f"the exported graph does not compute what torch computes on {rows} random samples "
            f"(largest relative difference: {shown}, expected at most {limit:g}); a value "
            "was probably fixed while exporting: change the module, or give an .onnx file"
        )
    return f"torch and ONNX agree: largest relative difference {shown} on {rows} random samples"


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference relative to the largest number; infinite where only one is not finite."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a - b)[finite].max() / max(np.abs(b[finite]).max(), 1e-12))
