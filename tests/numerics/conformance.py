"""Conformance of the executor's op table: ONNX's node tests, and the table of passes for the docs.

``python -m tests.numerics.conformance`` writes docs/operators.md.
"""

import functools
import pathlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from qtool.errors import QtoolError
from qtool.runtime.executor import OPS, Executor

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "operators.md"

FLOAT4 = "torch has no 4-bit float to round to"
FLOAT8_E8M0 = "rounding modes of the power-of-two 8-bit float are not written"
HALF = "one step of the 16-bit type, which is wider than the tolerance"
RANDOM = "training mode is random"
STRINGS = "torch has no strings"
WHOLE = "ONNX divides by a fractional output size; ONNX Runtime, as here, by the whole one"

EXCEPTIONS = {
    "test_attention_3d_causal_bf16": HALF,
    "test_attention_4d_attn_mask_causal_bf16": HALF,
    "test_attention_4d_causal_bf16": HALF,
    "test_attention_4d_causal_fp16": HALF,
    "test_attention_4d_causal_padded_kv_bf16": HALF,
    "test_attention_4d_padded_kv_bf16": HALF,
    "test_cast_FLOAT16_to_FLOAT4E2M1": FLOAT4,
    "test_cast_FLOAT_to_FLOAT4E2M1": FLOAT4,
    "test_cast_e8m0_FLOAT16_to_FLOAT8E8M0": FLOAT8_E8M0,
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0": FLOAT8_E8M0,
    "test_castlike_FLOAT16_to_FLOAT4E2M1": FLOAT4,
    "test_castlike_FLOAT_to_FLOAT4E2M1": FLOAT4,
    "test_equal_string": STRINGS,
    "test_equal_string_broadcast": STRINGS,
    "test_quantizelinear_float4e2m1": FLOAT4,
    "test_resize_downsample_scales_cubic_align_corners": WHOLE,
    "test_resize_downsample_scales_linear_align_corners": WHOLE,
    "test_training_dropout": RANDOM,
    "test_training_dropout_default": RANDOM,
    "test_training_dropout_default_mask": RANDOM,
    "test_training_dropout_mask": RANDOM,
}


@dataclass(frozen=True)
class Case:
    """One node test: name, op, model and data sets."""

    name: str
    op: str
    model: onnx.ModelProto
    data_sets: Any
    rtol: float
    atol: float


def _subject(model: onnx.ModelProto) -> str | None:
    """Return the only op of a model; None for a function body written out in other ops."""
    ops = [n.op_type for n in model.graph.node if n.domain in ("", "ai.onnx")]
    return ops[0] if len(ops) == 1 and len(model.graph.node) == 1 else None


@functools.cache
def cases() -> list[Case]:
    """Return the node tests of the ops in the table."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy overflows while onnx makes its data
        loaded = load_model_tests(kind="node")
    selected = []
    for test in loaded:
        if test.name.endswith("_expanded") or "_expanded_" in test.name:
            continue
        subject = _subject(test.model)
        if subject in OPS:
            selected.append(
                Case(test.name, subject, test.model, test.data_sets, test.rtol, test.atol)
            )
    return selected


def _array(data: Any) -> Any:
    return onnx.numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else data


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype.is_floating_point and tensor.dtype != torch.float64:
        return tensor.float().numpy()
    return tensor.numpy()


def _as_numbers(array: Any) -> np.ndarray:
    array = np.asarray(_array(array))
    if array.dtype.name in ("bfloat16", "float16") or array.dtype.name.startswith("float8"):
        return array.astype(np.float32)
    return (
        array.astype(np.int8 if array.dtype.name.startswith("int") else np.uint8)
        if (array.dtype.name in ("int4", "uint4", "int2", "uint2"))
        else array
    )


def failure(case: Case) -> str | None:
    """Return the reason why the table alone fails a case, None where it passes."""
    model = ir.from_proto(case.model)
    names = [i.name for i in case.model.graph.input]
    for inputs, expected in case.data_sets:
        run = Executor(model)
        try:
            with torch.no_grad():
                got = run({n: _array(g) for n, g in zip(names, inputs, strict=False)})
        except QtoolError as error:
            return f"{type(error).__name__}: {error}"
        if run.fallbacks:
            return "fallback"
        for name, want in zip(got, expected, strict=True):
            problem = _difference(got[name], want, case)
            if problem:
                return f"{name}: {problem}"
    return None


def _difference(got: Any, want: Any, case: Case) -> str | None:
    if not isinstance(got, torch.Tensor):
        return f"a {type(got).__name__}"
    have, need = _numbers(got), _as_numbers(want)
    if have.shape != need.shape:
        return f"shape {have.shape}, expected {need.shape}"
    kinds = have.dtype, need.dtype
    if kinds[0] != kinds[1]:
        return f"type {kinds[0]}, expected {kinds[1]}"
    if not np.allclose(have, need, case.rtol, case.atol, equal_nan=True):
        return f"values, {have.reshape(-1)[:8]}, expected {need.reshape(-1)[:8]}"
    return None


def table() -> str:
    """Return the markdown of docs/operators.md."""
    by_op: dict[str, list[Case]] = {op: [] for op in OPS}
    for case in cases():
        by_op[case.op].append(case)
    failed = {case.name for case in cases() if failure(case)}
    total, passed = len(cases()), len(cases()) - len(failed)
    lines = [
        "# Operators",
        "",
        f"The executor computes these {len(OPS)} ONNX operators in torch, with gradients. Any",
        "other operator, and any attribute or type that a function here does not take, runs as one",
        "node in ONNX Runtime, without a gradient, and the report names it; so do `If`, `Loop` and",
        "`Scan`.",
        "",
        f"Measured on ONNX {onnx.__version__}'s own node tests, without that fallback, at the",
        "tolerances ONNX states (relative 1e-3, absolute 1e-7):",
        f"**{passed} of {total} cases pass**.",
        "Operators without cases of their own are compared with ONNX Runtime in the test suite.",
        "Written by `python -m tests.numerics.conformance`.",
        "",
        "| operator | cases | passed | exceptions |",
        "|---|---|---|---|",
    ]
    for op, its in sorted(by_op.items()):
        reasons = sorted({EXCEPTIONS.get(c.name, "fails") for c in its if c.name in failed})
        good = sum(c.name not in failed for c in its)
        lines.append(f"| {op} | {len(its)} | {good} | {'; '.join(reasons)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCS.write_text(table())
    print(f"wrote {DOCS.name}")
