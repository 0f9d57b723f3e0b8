"""Comparison of an exported graph with the torch network it was exported from."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import ModelError, UnsupportedError
from qtool.loading.pytorch.example_inputs import named_outputs
from qtool.loading.pytorch.export import first_line
from qtool.runtime.ort_session import OrtSession

# Largest accepted relative difference between torch and the exported graph, for the least exact
# float type that torch computes in. Loading converts 16-bit floats of the graph to float32, so only
# torch rounds to them: to 11 significant bits in float16, to 8 in bfloat16.
MAX_DIFFERENCE = {None: 1e-3, ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}

Run = Callable[[Mapping[str, torch.Tensor]], Any]


def run_network(run: Run, feeds: Mapping[str, torch.Tensor], name: str) -> Any:
    """Run a torch network on example inputs.

    Args:
        run: calls the network with tensors by input name.
        feeds: the inputs.
        name: of the model, for messages.

    Returns:
        The result of the network.

    Raises:
        ModelError: the network fails on these inputs.
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


def least_exact_type(model: ir.Model) -> ir.DataType | None:
    """Return the least exact 16-bit float type in an exported graph, or None if there is none."""
    values = [v for node in model.graph.all_nodes() for v in (*node.inputs, *node.outputs)]
    dtypes = {v.dtype for v in values if v is not None}
    return next((t for t in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16) if t in dtypes), None)


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Convert a tensor to numpy; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def compare_with_torch(
    run: Run,
    feeds: Mapping[str, torch.Tensor],
    model: ir.Model,
    name: str,
    computed_in: ir.DataType | None = None,
) -> str:
    """Compare the outputs of an exported graph with those of torch.

    Args:
        run: calls the network with tensors by input name.
        feeds: the inputs.
        model: the graph, in float32.
        name: of the model, for messages.
        computed_in: the least exact type that torch computes in; see :func:`least_exact_type`.

    Returns:
        A note with the largest relative difference.

    Raises:
        ModelError: the network fails on these inputs.
        UnsupportedError: ONNX Runtime cannot run the graph, or the outputs differ too much.
    """
    expected = [_array(v) for v in named_outputs(run_network(run, feeds, name)).values()]
    inputs = [v.name or "" for v in model.graph.inputs]
    arrays = {key: _array(tensor) for key, tensor in feeds.items()}
    fed = arrays
    if set(inputs) != set(arrays):  # exporting a program renames inputs but keeps their order
        fed = dict(zip(inputs, arrays.values(), strict=True))
    try:
        with OrtSession(model) as session:
            outputs = list(session(fed).values())
    except Exception as error:
        raise UnsupportedError(
            f"the exported graph does not run in ONNX Runtime ({first_line(error)}); export the "
            "network yourself and give the .onnx file"
        ) from error
    same = len(outputs) == len(expected) and all(
        a.shape == b.shape for a, b in zip(outputs, expected, strict=False)
    )
    worst = max(map(_difference, outputs, expected), default=0.0) if same else np.inf
    shown = f"{worst:.1e}" if same else "their shapes differ"
    rows = max((len(v) for v in fed.values() if v.ndim), default=1)
    limit = MAX_DIFFERENCE[computed_in]
    if not worst <= limit:  # also true for NaN
        raise UnsupportedError(
            f"the exported graph does not compute what torch computes on {rows} random samples "
            f"(largest relative difference: {shown}, expected at most {limit:g}); a value "
            "was probably fixed while exporting: change the module, or give an .onnx file"
        )
    return f"torch and ONNX agree: largest relative difference {shown} on {rows} random samples"


def _difference(output: np.ndarray, expected: np.ndarray) -> float:
    """Compute max |output - expected| / max |expected| over finite entries.

    Returns:
        The relative difference; infinity where entries are finite in one of the arrays only.
    """
    a, b = output.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(
        np.abs(a - b)[finite].max() / max(np.abs(b[finite]).max(), 1e-12)
    )  # 1e-12: all zeros
