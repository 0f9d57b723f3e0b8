"""Integer kernels against ONNX Runtime, code for code, on random and on tie-producing grids."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exact_layers import (
    TARGET,
    Case,
    Scales,
    draw,
    feeds_of,
    frozen_plan,
    in_runtime,
    random_scales,
    tied_scales,
)

from qtool.simulation import ort_kernels

IMAGE = (2, 8, 17, 15)
POOL = {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1]}
CASES = {
    "conv1d": Case("Conv", ((2, 5, 33),), {"pads": [2, 1], "strides": [2]}, (7, 5, 4), 7),
    "conv2d": Case("Conv", (IMAGE,), {"pads": [1, 0, 2, 1], "dilations": [2, 1]}, (6, 8, 3, 3), 6),
    "conv2d without bias": Case("Conv", (IMAGE,), {"strides": [2, 1]}, (6, 8, 3, 3)),
    "conv2d groups": Case("Conv", (IMAGE,), {"pads": [1] * 4, "group": 4}, (12, 2, 3, 3), 12),
    "conv2d depthwise": Case("Conv", (IMAGE,), {"pads": [1] * 4, "group": 8}, (8, 1, 3, 3), 8),
    "conv3d": Case("Conv", ((1, 3, 7, 8, 9),), {"pads": [1, 1, 1, 0, 1, 2]}, (4, 3, 3, 2, 3), 4),
    "conv2d wide": Case("Conv", ((1, 1024, 4, 4),), {}, (3, 1024, 3, 3), 3),
    "gemm transposed": Case("Gemm", ((9, 40),), {"transB": 1}, (24, 40), 24),
    "gemm": Case("Gemm", ((9, 40),), {"transB": 0}, (40, 24), 24),
    "gemm without bias": Case("Gemm", ((9, 40),), {"transB": 0}, (40, 24)),
    "gemm to floats": Case("Gemm", ((9, 40),), {"transB": 1}, (24, 40), 24, quantized_output=False),
    "gemm to floats without bias": Case("Gemm", ((9, 40),), {}, (40, 24), quantized_output=False),
    "gemm wide": Case("Gemm", ((9, 4000),), {"transB": 1}, (24, 4000), 24),
    "matmul": Case("MatMul", ((3, 9, 40),), {}, (40, 24)),
    "matmul wide": Case("MatMul", ((9, 4000),), {}, (4000, 24)),
    "matmul to floats": Case("MatMul", ((3, 9, 40),), {}, (40, 24), quantized_output=False),
    "add": Case("Add", (IMAGE, IMAGE)),
    "add a channel vector": Case("Add", (IMAGE, (8, 1, 1))),
    "add to a channel vector": Case("Add", ((1, 8, 1, 1), IMAGE)),
    "add to a column": Case("Add", ((64, 1), (64, 33))),
    "add a row": Case("Add", ((64, 33), (33,))),
    "mul": Case("Mul", (IMAGE, IMAGE)),
    "mul by a channel vector": Case("Mul", (IMAGE, (2, 8, 1, 1))),
    "mul a channel vector": Case("Mul", ((2, 8, 1, 1), IMAGE)),
    "leaky": Case("LeakyRelu", (IMAGE,), {"alpha": 0.1}),
    "sigmoid": Case("Sigmoid", (IMAGE,)),
    "concat": Case("Concat", (IMAGE, (2, 3, 17, 15)), {"axis": 1}),
    "concat last": Case("Concat", ((2, 5), (2, 3), (2, 9)), {"axis": -1}),
    "global average": Case("GlobalAveragePool", ((8, 16, 7, 7),)),
    "global average of 2^k": Case("GlobalAveragePool", ((8, 16, 8, 4),)),
    "global average 1d": Case("GlobalAveragePool", ((8, 16, 200),)),
    "average": Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "average padded": Case("AveragePool", (IMAGE,), POOL),
    "average with padding": Case("AveragePool", (IMAGE,), POOL | {"count_include_pad": 1}),
    "average up": Case("AveragePool", (IMAGE,), POOL | {"strides": [2, 2], "ceil_mode": 1}),
    "average same": Case(
        "AveragePool",
        (IMAGE,),
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ),
    "average 1d": Case("AveragePool", ((2, 8, 100),), {"kernel_shape": [3], "pads": [1, 0]}),
    "average 3d": Case("AveragePool", ((2, 3, 7, 8, 9),), {"kernel_shape": [2, 3, 2]}),
}
KERNEL = {"Gemm": "QGemm", "MatMul": "QLinearMatMul"}
BETWEEN = {
    name: replace(case, convs=True)
    for name, case in CASES.items()
    if case.quantized_output and all(len(shape) == 4 for shape in case.shapes)
}


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def moves(op: str, shape: tuple[int, ...] = (2, 8, 6, 4), **rest) -> Case:
    return Case(op, (shape,), rest.pop("attributes", {}), **rest)


def slices() -> dict[str, np.ndarray]:
    return {"from": ints(5, 1), "to": ints(-9, 6), "axes": ints(1, 2), "steps": ints(-2, 3)}


PASSES = {
    "maxpool": moves("MaxPool", attributes=POOL | {"dilations": [1, 2]}),
    "maxpool up": moves("MaxPool", attributes=POOL | {"strides": [2, 2], "ceil_mode": 1}),
    "reshape": moves("Reshape", extra={"shape": ints(0, -1, 12)}),
    "flatten": moves("Flatten", attributes={"axis": 2}),
    "squeeze": moves("Squeeze", (2, 1, 6, 1), extra={"axes": ints(1)}),
    "unsqueeze": moves("Unsqueeze", extra={"axes": ints(0)}),
    "transpose": moves("Transpose", attributes={"perm": [0, 3, 1, 2]}),
    "slice": moves("Slice", extra=slices()),
    "split": moves("Split", extra={"parts": ints(3, 5)}, attributes={"axis": 1}, outputs=2),
    "pad": moves("Pad", extra={"pads": ints(0, 0, 1, 2, 0, 1, 0, 3)}),
    "space to depth": moves("SpaceToDepth", attributes={"blocksize": 2}),
    "depth to space": moves("DepthToSpace", attributes={"blocksize": 2, "mode": "CRD"}),
    "resize": Case(
        "Resize",
        ((2, 8, 6, 4),),
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"},
        extra={"roi": np.zeros(0, np.float32), "by": np.array([1, 1, 2, 3], np.float32)},
    ),
}


def differing(case: Case, scales, count: int) -> tuple[int, float]:
    """Return the codes that differ over some draws, and the largest share without saturation."""
    off, inside = 0, 0.0
    for seed in range(count):
        one = draw(case, scales(case, np.random.default_rng(seed)), seed)
        off += one.off
        inside = max(inside, one.inside)
    return off, inside


@pytest.mark.parametrize("scales", [random_scales, tied_scales])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_code_differs(case, scales):
    off, inside = differing(case, scales, 4)
    assert off == 0
    assert inside > 0.1  # the draws tested rounding, not only saturation


@pytest.mark.parametrize("case", BETWEEN.values(), ids=BETWEEN)
def test_no_code_differs_channels_last(case):
    assert differing(case, tied_scales, 3)[0] == 0


@pytest.mark.parametrize("case", PASSES.values(), ids=PASSES)
def test_codes_move_unchanged(case):
    assert differing(case, tied_scales, 3)[0] == 0


@pytest.mark.parametrize("name", CASES)
def test_an_integer_kernel_ran(name, tmp_path):
    case = CASES[name]
    draw(case, random_scales(case, np.random.default_rng(0)), 0, tmp_path / "o.onnx")
    ran = {node.op_type for node in ir.load(tmp_path / "o.onnx").graph}
    expected = KERNEL.get(case.op, f"QLinear{case.op}")
    if case.op == "MatMul" and not case.quantized_output:
        expected = "MatMulIntegerToFloat"
    assert expected in ran


def test_every_kernel_and_every_pass_of_the_target_is_tested():
    tested = {case.op for case in (*CASES.values(), *PASSES.values())}
    assert tested == set(TARGET.ops)
    assert {op for op, rule in TARGET.ops.items() if rule.form == "same_grid"} == {
        case.op for case in PASSES.values()
    }


@pytest.mark.parametrize("scales", [random_scales, tied_scales])
def test_a_mean_that_writes_floats_is_exact(scales, tmp_path):
    """A network that ends in GlobalAveragePool: ones @ codes in integers, one float factor."""
    case = Case("GlobalAveragePool", ((4, 16, 7, 5),), convs=True, quantized_output=False)
    for seed in range(4):
        one = draw(case, scales(case, np.random.default_rng(seed)), seed, tmp_path / "o.onnx")
        assert one.off == 0 and one.runtime[0].dtype == np.float32
    assert "MatMulInteger" in {node.op_type for node in ir.load(tmp_path / "o.onnx").graph}


WIDE = [
    Case("Conv", ((1, 1024, 4, 4),), {}, (3, 1024, 3, 3), weight_codes=(100, 127)),
    Case("Gemm", ((9, 4000),), {"transB": 1}, (24, 4000), weight_codes=(100, 127)),
    Case("MatMul", ((9, 4000),), {}, (4000, 24), weight_codes=(100, 127)),
]


@pytest.mark.parametrize("case", WIDE, ids=[case.op for case in WIDE])
def test_sums_past_2_to_the_24_are_exact(case, monkeypatch):
    """All weights are positive, sums near 10**8; float32 alone is seen where floats are written."""
    scales = Scales(((0.01, 0),), (0.01, 0), 1e-6)
    draws = [draw(case, scales, seed) for seed in range(4)]
    assert [one.off for one in draws] == [0] * 4
    assert min(one.inside for one in draws) > 0.9
    if case.op == "Conv":  # its codes are too coarse to show it
        return
    floats = replace(case, quantized_output=False)
    assert draw(floats, scales, 0).off == 0
    monkeypatch.setattr(ort_kernels, "EXACT_SUM", float("inf"))
    assert draw(floats, scales, 0).off > 0


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("add", lambda n, x, g, y: ort_kernels.requantize(sum(_reals(x, g)) / float(y.scale), y)),
        ("mul", lambda n, x, g, y: ort_kernels.requantize(_product(x, g) / float(y.scale), y)),
        (
            "average",
            lambda n, x, g, y: ort_kernels.requantize(_pooled(n, x, g) / float(y.scale), y),
        ),
    ],
)
def test_another_order_of_operations_is_seen(name, kernel, monkeypatch):
    """ONNX's definition, computed in float32, differs from the kernels on ties."""
    monkeypatch.setitem(ort_kernels.KERNELS, CASES[name].op, kernel)
    assert differing(CASES[name], tied_scales, 24)[0] > 0


def _reals(x, grids):
    return [(c - float(g.zero_point)) * float(g.scale) for c, g in zip(x, grids, strict=True)]


def _product(x, grids):
    a, b = _reals(x, grids)
    return a * b


def _pooled(node, x, grids):
    return torch.nn.functional.avg_pool2d(_reals(x, grids)[0], 2, 2)


@pytest.mark.parametrize("name", ["conv2d", "gemm", "matmul"])
def test_another_rounding_is_seen(name, monkeypatch):
    def half_up(x, y):
        return ((x + 0.5).floor() + float(y.zero_point)).clamp(y.spec.qmin, y.spec.qmax)

    monkeypatch.setattr(ort_kernels, "requantize", half_up)
    assert differing(CASES[name], tied_scales, 24)[0] > 0


@pytest.mark.parametrize(
    ("attributes", "why"),
    [({"dilations": [2, 1]}, "no dilations"), ({"ceil_mode": 1, "count_include_pad": 1}, "whole")],
)
def test_averages_that_the_kernel_gets_wrong_stay_float(attributes, why, tmp_path):
    """The emitted pattern keeps ONNX Runtime from fusing them."""
    case = Case("AveragePool", (IMAGE,), POOL | {"strides": [2, 2]} | attributes, convs=True)
    model, rng = case.model(), np.random.default_rng(0)
    plan = frozen_plan(case, model, random_scales(case, rng), rng)
    assert why in plan.float_nodes["op"]
    in_runtime(model, plan, feeds_of(case, plan, rng), tmp_path / "o.onnx")
    ran = {node.op_type for node in ir.load(tmp_path / "o.onnx").graph}
    assert "AveragePool" in ran and "QLinearAveragePool" not in ran


@pytest.mark.parametrize(
    "case",
    [
        Case("Conv", (IMAGE,), {"pads": [1] * 4}, (8, 8, 3, 3), 8, convs=True),
        Case("LeakyRelu", (IMAGE,), convs=True),
        Case("Softmax", (IMAGE,), convs=True),
        Case("Add", (IMAGE, IMAGE), convs=True),
    ],
    ids=lambda case: case.op,
)
def test_a_float_layer_between_integers_stays_float(case, tmp_path):
    """Read by Q/DQ pairs, ONNX Runtime would quantize it, with weights per tensor."""
    model, rng = case.model(), np.random.default_rng(0)
    plan = frozen_plan(case, model, random_scales(case, rng), rng, frozenset({"op"}))
    in_runtime(model, plan, feeds_of(case, plan, rng), tmp_path / "o.onnx")
    ran = [node.op_type for node in ir.load(tmp_path / "o.onnx").graph]
    assert case.op in ran and ran.count("QLinearConv") == 1 + len(case.shapes)
    assert f"QLinear{case.op}" not in set(ran) - {"QLinearConv"}
