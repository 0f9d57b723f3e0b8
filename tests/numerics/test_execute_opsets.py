"""Old spellings of operators (opsets 7 to 20): as written, and upgraded, against ONNX Runtime."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper, version_converter

from qtool.runtime.executor import Executor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
FLAT = RNG.normal(size=(3, 4)).astype(np.float32)
CHANNEL = RNG.uniform(0.5, 2, size=3).astype(np.float32)


@dataclass(frozen=True)
class Old:
    """One node of an old opset; ``upgrades`` says whether onnx's own converter lifts it rightly.

    It has no adapter for some, and keeps Hardmax 11 and Resize 10 as if their meaning were the new.
    """

    op: str
    opset: int
    data: tuple[Any, ...] = (X,)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    upgrades: bool = True


def i64(*values):
    return np.array(values, np.int64)


def f32(*values):
    return np.array(values, np.float32)


OLD = [
    Old("Slice", 7, (X,), {"starts": [1, -3], "ends": [3, 2000], "axes": [2, 3]}),
    Old("Slice", 9, (X,), {"starts": [0, 1], "ends": [1, 3]}),
    Old("Slice", 10, (X, i64(3), i64(-100), i64(2), i64(-2))),
    Old("Squeeze", 11, (X[:1, :, :1],), {"axes": [0, 2]}),
    Old("Squeeze", 7, (X[:1, :, :1],)),
    Old("Squeeze", 13, (X[:1, :, :1], i64(-2))),
    Old("Unsqueeze", 7, (FLAT,), {"axes": [0, 3]}),
    Old("Unsqueeze", 11, (FLAT,), {"axes": [-1, 1]}),
    Old("Clip", 7, (X,), {"min": -0.5, "max": 0.25}),
    Old("Clip", 6 + 1, (X,), {"max": 0.25}),
    Old("Clip", 11, (X, np.float32(-0.1))),
    Old("Pad", 7, (X,), {"pads": [0, 0, 1, 2, 0, 0, 3, 1], "value": 1.5}),
    Old("Pad", 10, (X,), {"pads": [0, 0, 1, 2, 0, 0, 3, 1], "mode": "reflect"}),
    Old("Pad", 11, (X, i64(0, 0, 1, -2, 0, 0, 3, 1), np.float32(2)), {"mode": "constant"}),
    Old("ReduceSum", 7, (X,), {"axes": [1, 3], "keepdims": 0}),
    Old("ReduceSum", 13, (X, i64(-1))),
    Old("ReduceMean", 11, (X,), {"axes": [-2, -1]}),
    Old("ReduceMean", 7, (X,), {"keepdims": 0}),
    Old("ReduceMax", 13, (X,), {"axes": [2]}),
    Old("ReduceMin", 18, (X, i64(0, 2)), {"keepdims": 0}),
    Old("ReduceL1", 11, (X,), {"axes": [1]}),
    Old("ReduceL2", 13, (X,), {"axes": [1]}),
    Old("ReduceProd", 13, (X,), {"axes": [0, 1]}),
    Old("ReduceSumSquare", 13, (X,), {"axes": [0, 1]}),
    Old("ReduceLogSum", 13, (abs(X),), {"axes": [3]}),
    Old("ReduceLogSumExp", 13, (X,), {"axes": [3]}),
    Old("Softmax", 7, (X,), {}),
    Old("Softmax", 11, (X,), {"axis": 2}),
    Old("Softmax", 12, (X,), {"axis": -1}),
    Old("LogSoftmax", 8, (X,), {"axis": 2}),
    Old("Hardmax", 11, (X,), {"axis": 1}, upgrades=False),
    Old("Dropout", 7, (X,), {"ratio": 0.3}),
    Old("Dropout", 10, (X,), {"ratio": 0.3}),
    Old("Upsample", 7, (X,), {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "nearest"}, upgrades=False),
    Old("Upsample", 9, (X, f32(1, 1, 2, 2)), {"mode": "nearest"}, upgrades=False),
    Old("Upsample", 9, (X, f32(1, 1, 2, 2)), {"mode": "linear"}, upgrades=False),
    Old("Resize", 10, (X, f32(1, 1, 2, 1.6)), {"mode": "nearest"}, upgrades=False),
    Old("Resize", 10, (X, f32(1, 1, 2, 1.6)), {"mode": "linear"}, upgrades=False),
    Old("Resize", 11, (X, f32(), f32(1, 1, 1.5, 2)), {"mode": "linear"}),
    Old("Resize", 11, (X, f32(), f32(1, 1, 1.5, 0.7)), {"mode": "cubic"}),
    Old("Resize", 11, (X, f32(), f32(), i64(2, 3, 7, 9)), {"nearest_mode": "ceil"}),
    Old(
        "Resize",
        13,
        (X, f32(), f32(), i64(2, 3, 8, 10)),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    Old("TopK", 7, (FLAT,), {"k": 2, "axis": 1}, outputs=2, upgrades=False),
    Old("TopK", 10, (FLAT, i64(3)), {"axis": 0}, outputs=2),
    Old("TopK", 11, (FLAT, i64(2)), {"largest": 0}, outputs=2),
    Old("Split", 7, (X,), {"axis": 3, "split": [2, 3]}, outputs=2),
    Old("Split", 11, (X,), {"axis": 2}, outputs=2),
    Old("Split", 13, (X, i64(1, 3)), {"axis": 2}, outputs=2),
    Old("Split", 18, (X,), {"axis": 3, "num_outputs": 2}, outputs=2),
    Old("BatchNormalization", 7, (X, CHANNEL, -CHANNEL, CHANNEL / 3, CHANNEL), {"momentum": 0.5}),
    Old("BatchNormalization", 9, (X, CHANNEL, -CHANNEL, CHANNEL / 3, CHANNEL), {"epsilon": 0.1}),
    Old("BatchNormalization", 14, (X, CHANNEL, -CHANNEL, CHANNEL / 3, CHANNEL)),
    Old("Reshape", 7, (X, i64(0, -1, 5))),
    Old("Reshape", 14, (np.zeros((0, 3), np.float32), i64(3, 0)), {"allowzero": 1}),
    Old("Flatten", 9, (X,), {"axis": 2}),
    Old("Gather", 10, (FLAT, i64(2, 0)), {"axis": 1}),
    Old("Cast", 9, (X,), {"to": 6}),
    Old("Gemm", 7, (FLAT, FLAT, CHANNEL), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Old("Gemm", 9, (FLAT, FLAT.T.copy(), CHANNEL)),
    Old("PRelu", 7, (X, CHANNEL.reshape(3, 1, 1))),
    Old("AveragePool", 7, (X,), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1]}),
    Old("AveragePool", 10, (X,), {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
    Old("MaxPool", 8, (X,), {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0]}, outputs=2),
    Old("MaxPool", 10, (X,), {"kernel_shape": [2, 2], "dilations": [2, 2], "ceil_mode": 1}),
    Old("LpPool", 11, (X,), {"kernel_shape": [2, 2], "p": 3}),
    Old("GlobalLpPool", 7, (X,), {"p": 2}),
    Old("ArgMax", 11, (FLAT,), {"axis": -1}),
    Old("ArgMin", 12, (FLAT,), {"axis": 0, "select_last_index": 1, "keepdims": 0}),
    Old("Scatter", 10, (FLAT, i64(0, 1).reshape(2, 1), FLAT[:2, :1]), {"axis": 1}, upgrades=False),
    Old("ScatterND", 11, (FLAT, i64(2, 0).reshape(2, 1), FLAT[:2] * 3)),
    Old("OneHot", 9, (i64(0, 2, 1), i64(3), f32(-1, 4)), {"axis": 0}),
    Old("GroupNormalization", 18, (X[:, :2], CHANNEL[:2], CHANNEL[:2]), {"num_groups": 2}),
    Old("LayerNormalization", 17, (X, f32(1, 2, 3, 4, 5)), {"epsilon": 1e-3}),
    Old("InstanceNormalization", 7, (X, CHANNEL, CHANNEL)),
    Old("Mod", 10, (X, abs(X) + 1), {"fmod": 1}),
    Old("Pow", 7, (abs(X), np.float32(1.5))),
    Old("Where", 9, (X > 0, X, -X)),
    Old("GridSample", 16, (X, X[:, 0, :, :2].reshape(2, 4, 2, 1).repeat(2, -1)), upgrades=False),
    Old("DepthToSpace", 11, (np.tile(X, (1, 4, 1, 1)),), {"blocksize": 2, "mode": "CRD"}),
    Old("CumSum", 11, (FLAT, np.int64(1)), {"reverse": 1}),
    Old("Trilu", 14, (FLAT, np.int64(1)), {"upper": 0}),
    Old("QuantizeLinear", 10, (X, np.float32(0.1), np.uint8(100))),
    Old("DequantizeLinear", 13, (np.arange(6, dtype=np.int8).reshape(2, 3), CHANNEL), {"axis": 1}),
]


def model_of(case: Old) -> onnx.ModelProto:
    """The node with its first input fed and the others as initializers."""
    names = [f"in{i}" for i in range(len(case.data))]
    outputs = [f"out{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, "the_node", **case.attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(case.data[0]).dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("in0", kind, np.shape(case.data[0]))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(d), n) for d, n in zip(case.data, names, strict=True)][
            1:
        ],
    )
    opset = helper.make_opsetid("", case.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def expected(model: onnx.ModelProto, feeds) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def check(model: onnx.ModelProto, feeds, expected_outputs) -> None:
    run = Executor(ir.from_proto(model))
    with torch.no_grad():
        got = run(feeds)
    assert run.fallbacks == {}
    for have, want in zip(got.values(), expected_outputs, strict=True):
        assert have.numpy().dtype == want.dtype
        # Two float32 implementations of one formula, sums of at most 120 terms.
        np.testing.assert_allclose(have.numpy(), want, rtol=2e-5, atol=2e-6)


IDS = [f"{case.op}-{case.opset}-{i}" for i, case in enumerate(OLD)]


@pytest.mark.parametrize("case", OLD, ids=IDS)
def test_an_old_form_runs_as_written(case):
    model = model_of(case)
    feeds = {"in0": case.data[0]}
    check(model, feeds, expected(model, feeds))


UPGRADABLE = [case for case in OLD if case.upgrades]


@pytest.mark.parametrize("case", UPGRADABLE, ids=[f"{c.op}-{c.opset}" for c in UPGRADABLE])
def test_an_old_form_runs_upgraded(case):
    model = model_of(case)
    feeds = {"in0": case.data[0]}
    typed = onnx.shape_inference.infer_shapes(model)
    check(version_converter.convert_version(typed, 21), feeds, expected(model, feeds))
