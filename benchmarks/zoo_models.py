"""Small models of every construct, with random weights that are not degenerate.

Each builder returns an ``onnx.ModelProto`` and its inputs: name -> (shape with "N" free, dtype,
high), where ``high`` bounds integer inputs.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Inputs = dict[str, tuple[list[int | str], str, int]]
Built = tuple[onnx.ModelProto, Inputs]

rng = np.random.default_rng(7)


def weight(*shape: int) -> np.ndarray:
    fan = int(np.prod(shape[1:])) or 1
    return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


class Net:
    """A graph under construction."""

    def __init__(self, opset: int = 17, ir: int = 8) -> None:
        self.opset, self.ir = opset, ir
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: Inputs = {}
        self.types: list[onnx.ValueInfoProto] = []

    def input(
        self, name: str, shape: list[int | str], dtype: str = "float32", high: int = 2
    ) -> str:
        self.inputs[name] = (shape, dtype, high)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.types.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, array: np.ndarray, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        names = [f"{kind.lower()}_{len(self.nodes)}_{k}" for k in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, f"/{kind}_{len(self.nodes)}", **attrs)
        node.domain = domain
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def conv(self, x: str, out: int, inp: int, *k: int, bias: bool = True, **attrs: Any) -> str:
        group = attrs.get("group", 1)
        inputs = [x, self.const(weight(out, inp // group, *k))]
        if bias:
            inputs.append(self.const(0.1 * weight(out)))
        output: str = self.op("Conv", *inputs, **attrs)
        return output

    def linear(self, x: str, out: int, inp: int) -> str:
        product = self.op("MatMul", x, self.const(weight(inp, out)))
        output: str = self.op("Add", product, self.const(0.1 * weight(out)))
        return output

    def done(self, *outputs: str, shapes: list[list[int | str] | None] | None = None) -> Built:
        kinds = shapes or [None] * len(outputs)
        infos = [
            helper.make_tensor_value_info(o, TensorProto.FLOAT, s)
            for o, s in zip(outputs, kinds, strict=True)
        ]
        graph = helper.make_graph(self.nodes, "zoo", self.types, infos, self.constants)
        domains = {n.domain for n in self.nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(d, 1 if d == "com.microsoft" else 3) for d in domains]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)
        return model, self.inputs


def conv1d() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 8, 64]), 16, 8, 5, pads=[2, 2], strides=[2]))
    return n.done(n.conv(x, 8, 16, 3, dilations=[2]))


def conv3d() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 4, 8, 12, 12]), 8, 4, 3, 3, 3, pads=[1] * 6))
    return n.done(n.op("GlobalAveragePool", n.conv(x, 8, 8, 3, 3, 3)))


def grouped() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 16, 14, 14]), 32, 16, 3, 3, group=4, pads=[1] * 4))
    x = n.op("Relu", n.conv(x, 32, 32, 3, 3, group=32, pads=[1] * 4))
    return n.done(n.conv(x, 8, 32, 1, 1))


def auto_pad() -> Built:
    n = Net()
    x = n.op(
        "Relu",
        n.conv(n.input("x", ["N", 3, 15, 15]), 8, 3, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]),
    )
    return n.done(n.conv(x, 8, 8, 3, 3, auto_pad="VALID"))


def conv_transpose() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 4, 8, 8]), 8, 4, 3, 3, pads=[1] * 4))
    up = n.op("ConvTranspose", x, n.const(weight(8, 40, 2, 2)), strides=[2, 2])
    return n.done(n.conv(n.op("Relu", up), 4, 40, 3, 3, pads=[1] * 4))


def gemm_forms() -> Built:
    n = Net()
    x = n.input("x", ["N", 24])
    a = n.op("Gemm", x, n.const(weight(24, 16)), n.const(0.1 * weight(16)), alpha=0.5, beta=2.0)
    b = n.op("Gemm", n.op("Relu", a), n.const(weight(12, 16)), n.const(weight(1, 12)), transB=1)
    c = n.op("Gemm", b, n.const(weight(12, 6)), n.const(np.float32(0.3)))
    return n.done(n.op("Gemm", c, n.const(weight(6, 5))))


def gemm_transposed_input() -> Built:
    n = Net()
    x = n.op("Transpose", n.input("x", ["N", 20]), perm=[1, 0])
    return n.done(n.op("Gemm", x, n.const(weight(20, 10)), n.const(weight(10)), transA=1))


def matmul_left() -> Built:
    n = Net()
    x = n.op("MatMul", n.const(weight(6, 10)), n.input("x", ["N", 10, 12]))
    return n.done(n.linear(x, 8, 12))


def einsum() -> Built:
    n = Net()
    x = n.linear(n.input("x", ["N", 6, 16]), 16, 16)
    return n.done(n.op("Einsum", x, n.const(weight(16, 8)), equation="bij,jk->bik"))


def resize() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 8, 8]), 8, 3, 3, 3, pads=[1] * 4))
    scales = n.const(np.array([1, 1, 2, 2], np.float32))
    up = n.op(
        "Resize", x, "", scales, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    y = n.conv(up, 8, 8, 3, 3, pads=[1] * 4)
    return n.done(n.conv(n.op("Resize", y, "", scales, mode="linear"), 4, 8, 3, 3))


def squeeze_excite() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 16, 16]), 16, 3, 3, 3, pads=[1] * 4))
    s = n.op("Relu", n.conv(n.op("GlobalAveragePool", x), 4, 16, 1, 1))
    gate = n.op("Sigmoid", n.conv(s, 16, 4, 1, 1))
    return n.done(n.conv(n.op("Mul", x, gate), 8, 16, 1, 1))


def hard_swish() -> Built:
    n = Net(opset=14)
    x = n.op("HardSwish", n.conv(n.input("x", ["N", 3, 16, 16]), 8, 3, 3, 3, strides=[2, 2]))
    return n.done(n.op("LeakyRelu", n.conv(x, 8, 8, 3, 3), alpha=0.2))


def dense_block() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 16, 16]), 8, 3, 3, 3, pads=[1] * 4))
    a = n.op("Relu", n.conv(x, 8, 8, 3, 3, pads=[1] * 4))
    j = n.op("Concat", x, a, axis=1)
    b = n.op("Relu", n.conv(j, 8, 16, 3, 3, pads=[1] * 4))
    pooled = n.op("AveragePool", n.op("Concat", j, b, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    return n.done(n.conv(pooled, 4, 24, 1, 1))


def attention() -> Built:
    n = Net()
    x = n.input("x", ["N", 10, 32])
    shape = n.const(np.array([0, 10, 4, 8]))
    q, k, v = (n.op("Reshape", n.linear(x, 32, 32), shape) for _ in range(3))
    q, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    k = n.op("Transpose", k, perm=[0, 2, 3, 1])
    scores = n.op("Softmax", n.op("Mul", n.op("MatMul", q, k), n.const(np.float32(0.35))), axis=-1)
    out = n.op("Transpose", n.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = n.linear(n.op("Reshape", out, n.const(np.array([0, 10, 32]))), 32, 32)
    y = n.op("Add", x, y)
    y = n.op(
        "LayerNormalization", y, n.const(1 + 0.1 * weight(32)), n.const(0.1 * weight(32)), axis=-1
    )
    return n.done(n.linear(y, 8, 32))


def _recurrent(kind: str, gates: int, direction: str = "forward") -> Built:
    n = Net()
    x, hidden, size = n.input("x", [12, "N", 10]), 40, 10
    d = 2 if direction == "bidirectional" else 1
    w, r = weight(d, gates * hidden, size), weight(d, gates * hidden, hidden)
    b = 0.1 * weight(d, 2 * gates * hidden)
    inputs = [x, n.const(w), n.const(r), n.const(b)]
    out = n.op(kind, *inputs, hidden_size=hidden, direction=direction)
    flat = n.op(
        "Reshape",
        n.op("Transpose", out, perm=[0, 2, 1, 3]),
        n.const(np.array([12, -1, d * hidden])),
    )
    return n.done(n.op("Transpose", n.linear(flat, 6, d * hidden), perm=[1, 0, 2]))


def batch_first(build: Callable[[], Built]) -> Built:
    """Build the recurrent net with the batch as first axis, as data has it."""
    model, inputs = build()
    (_, dtype, high) = inputs["x"]
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12, 10])
    )
    first = model.graph.node[0]
    first.input[0] = "x_time"
    model.graph.node.insert(
        0, helper.make_node("Transpose", ["x"], ["x_time"], "/time_first", perm=[1, 0, 2])
    )
    return model, {"x": (["N", 12, 10], dtype, high)}


def lstm() -> Built:
    return batch_first(lambda: _recurrent("LSTM", 4))


def gru() -> Built:
    return batch_first(lambda: _recurrent("GRU", 3, "bidirectional"))


def rnn() -> Built:
    return batch_first(lambda: _recurrent("RNN", 1, "reverse"))


def _body(name: str, *, scaled: float) -> onnx.GraphProto:
    w = numpy_helper.from_array(weight(16, 8), f"{name}_w")
    nodes = [
        helper.make_node("MatMul", ["hidden", f"{name}_w"], [f"{name}_y"], f"/{name}/MatMul"),
        helper.make_node("Mul", [f"{name}_y", f"{name}_s"], [f"{name}_out"], f"/{name}/Mul"),
    ]
    s = numpy_helper.from_array(np.float32(scaled), f"{name}_s")
    out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [out], [w, s])


def if_branches() -> Built:
    n = Net()
    x = n.linear(n.input("x", ["N", 12]), 16, 12)
    n.nodes.append(helper.make_node("Relu", [x], ["hidden"], "/hidden"))
    flag = n.op("Greater", n.op("ReduceMean", "hidden", keepdims=0), n.const(np.float32(0)))
    y = n.op(
        "If", flag, then_branch=_body("then", scaled=1.0), else_branch=_body("other", scaled=2.0)
    )
    return n.done(n.linear(y, 4, 8))


def loop() -> Built:
    n = Net()
    x = n.linear(n.input("x", ["N", 16]), 16, 16)
    w = numpy_helper.from_array(weight(16, 16), "loop_w")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond"], ["cond_out"], "/loop/cond"),
            helper.make_node("MatMul", ["state", "loop_w"], ["state_y"], "/loop/MatMul"),
            helper.make_node("Add", ["state_y", x], ["state_z"], "/loop/Add"),
            helper.make_node("Tanh", ["state_z"], ["state_out"], "/loop/Tanh"),
        ],
        "loop_body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, None),
        ],
        [w],
    )
    y = n.op("Loop", n.const(np.int64(3)), n.const(np.bool_(True)), x, body=body)
    return n.done(n.linear(y, 4, 16))


def scan() -> Built:
    n = Net()
    x = n.op("Transpose", n.linear(n.input("x", ["N", 5, 8]), 8, 8), perm=[1, 0, 2])
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum_in", "item"], ["sum_out"], "/scan/Add"),
            helper.make_node("Identity", ["sum_out"], ["scan_out"], "/scan/Identity"),
        ],
        "scan_body",
        [
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("item", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scan_out", TensorProto.FLOAT, None),
        ],
    )
    first = n.op("Gather", x, n.const(np.int64(0)), axis=0)
    zero = n.op("Mul", first, n.const(np.float32(0)))
    _, seq = n.op("Scan", zero, x, outputs=2, body=body, num_scan_inputs=1)
    return n.done(n.linear(n.op("Transpose", seq, perm=[1, 0, 2]), 4, 8))


def produced_weights() -> Built:
    n = Net()
    value = numpy_helper.from_array(np.array([0.05], np.float32))
    ones = n.op("ConstantOfShape", n.const(np.array([8, 3, 3, 3])), value=value)
    w = n.op("Add", ones, n.const(weight(8, 3, 3, 3)))
    x = n.op("Conv", n.input("x", ["N", 3, 12, 12]), w)
    tensor = numpy_helper.from_array(weight(4, 8, 1, 1))
    return n.done(n.op("Conv", n.op("Relu", x), n.op("Constant", value=tensor)))


def shared_weights() -> Built:
    n = Net()
    w, b = n.const(weight(8, 8, 3, 3)), n.const(0.1 * weight(8))
    x = n.conv(n.input("x", ["N", 3, 12, 12]), 8, 3, 3, 3, pads=[1] * 4)
    for _ in range(3):
        x = n.op("Relu", n.op("Conv", x, w, b, pads=[1] * 4))
    return n.done(x)


def tied_embedding() -> Built:
    n = Net()
    ids = n.input("ids", ["N", 6], "int64", 50)
    table = n.const(weight(80, 16))
    x = n.linear(n.op("Gather", table, ids), 16, 16)
    return n.done(n.op("MatMul", x, n.op("Transpose", table, perm=[1, 0])))


def several_inputs_and_outputs() -> Built:
    n = Net()
    a = n.linear(n.input("a", ["N", 12]), 8, 12)
    mask = n.op("Cast", n.input("mask", ["N", 8], "bool"), to=TensorProto.FLOAT)
    b = n.linear(n.op("Cast", n.input("b", ["N", 8], "int32", 9), to=TensorProto.FLOAT), 8, 8)
    y = n.op("Mul", n.op("Add", a, b), mask)
    return n.done(n.linear(y, 4, 8), n.op("Sigmoid", n.linear(y, 2, 8)))


def dynamic_shapes() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, "H", "W"]), 8, 3, 3, 3, strides=[2, 2]))
    x = n.op("Relu", n.conv(x, 8, 8, 3, 3))
    y = n.op("Flatten", n.op("GlobalAveragePool", x))
    return n.done(n.op("Gemm", y, n.const(weight(8, 5)), n.const(weight(5))))


def fixed_batch() -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", [4, 3, 8, 8]), 8, 3, 3, 3))
    return n.done(
        n.op("Gemm", n.op("Reshape", x, n.const(np.array([4, 288]))), n.const(weight(288, 5)))
    )


def old_opset_7() -> Built:
    n = Net(opset=7, ir=3)
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 8, 8]), 8, 3, 3, 3, pads=[1] * 4))
    scale, bias, mean, var = (
        n.const(a) for a in (1 + weight(8) / 4, weight(8), weight(8), 1 + weight(8) ** 2)
    )
    x = n.op("BatchNormalization", x, scale, bias, mean, var)
    x = n.op("Squeeze", n.op("ReduceMean", x, axes=[2], keepdims=1), axes=[2])
    model, inputs = n.done(
        n.op(
            "Softmax",
            n.op("Gemm", n.op("Flatten", x), n.const(weight(64, 5)), n.const(weight(5))),
            axis=1,
        )
    )
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return model, inputs


def upsample_9() -> Built:
    n = Net(opset=9)
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 8, 8]), 8, 3, 3, 3, pads=[1] * 4))
    up = n.op("Upsample", x, n.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    return n.done(n.conv(up, 4, 8, 3, 3))


def resize_10() -> Built:
    n = Net(opset=10)
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 8, 8]), 8, 3, 3, 3, pads=[1] * 4))
    up = n.op("Resize", x, n.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    return n.done(n.conv(up, 4, 8, 3, 3))


def _halved(build: Callable[[], Built], kind: int) -> Built:
    """Convert float weights and values to another float type; inputs and outputs stay float32."""
    model, inputs = build()
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    rename = {}
    for k, value in enumerate([i for i in graph.input if i.type.tensor_type.elem_type == 1]):
        rename[value.name] = f"{value.name}_low"
        node = helper.make_node("Cast", [value.name], [f"{value.name}_low"], f"/low_{k}", to=kind)
        graph.node.insert(0, node)
    for node in list(graph.node)[len(rename) :]:
        for j, name in enumerate(node.input):
            node.input[j] = rename.get(name, name)
    out = graph.output[0].name
    for node in graph.node:
        for j, name in enumerate(node.output):
            if name == out:
                node.output[j] = f"{out}_low"
    graph.node.append(helper.make_node("Cast", [f"{out}_low"], [out], "/back", to=1))
    return model, inputs


def float16() -> Built:
    return _halved(grouped, TensorProto.FLOAT16)


def bfloat16() -> Built:
    """Build a bfloat16 model; ONNX Runtime has no kernels, so the float model is float32."""
    return _halved(grouped, TensorProto.BFLOAT16)


def newest_operators() -> Built:
    """Build a model of RMSNormalization and Attention of opset 23."""
    n = Net(opset=23, ir=11)
    x = n.linear(n.input("x", ["N", 10, 32]), 32, 32)
    q, k, v = (n.linear(x, 32, 32) for _ in range(3))
    y = n.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=4)
    y = n.op("RMSNormalization", n.op("Add", x, y), n.const(1 + 0.1 * weight(32)), axis=-1)
    return n.done(n.linear(n.op("Gelu", y), 8, 32))


def captured_weights() -> Built:
    """Build a graph with weights that only a branch reads, and one that both graphs read."""
    n = Net()
    x = n.linear(n.input("x", ["N", 12]), 16, 12)
    w, v = n.const(weight(16, 8)), n.const(weight(16, 8))
    flag = n.op("Greater", n.op("ReduceMax", x, keepdims=0), n.const(np.float32(0)))
    bodies = []
    for name, held in (("then", w), ("other", v)):
        node = helper.make_node("MatMul", [x, held], [f"{name}_out"], f"/{name}/MatMul")
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([node], name, [], [out]))
    y = n.op("If", flag, then_branch=bodies[0], else_branch=bodies[1])
    return n.done(n.linear(n.op("Add", y, n.op("MatMul", x, w)), 4, 8))


def optimized_by_onnxruntime() -> Built:
    """Build the attention model optimized by ONNX Runtime: SkipLayerNormalization and others."""
    import onnxruntime as ort

    model, inputs = attention()
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return onnx.load(f"{folder}/optimized.onnx"), inputs


def tree_ensemble() -> Built:
    """Build a model without anything to quantize: exit code 3."""
    n = Net()
    y = n.op(
        "TreeEnsembleRegressor", n.input("x", ["N", 4]), domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0],
        target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    return n.done(y)


def preprocessing() -> Built:
    """Build another model without anything to quantize."""
    n = Net()
    x = n.op("Cast", n.input("x", ["N", 12, 12, 3], "uint8", 256), to=TensorProto.FLOAT)
    x = n.op("Transpose", n.op("Div", x, n.const(np.float32(255))), perm=[0, 3, 1, 2])
    return n.done(n.op("Sub", x, n.const(np.full((3, 1, 1), 0.5, np.float32))))


def microsoft_fused() -> Built:
    n = Net()
    x = n.conv(n.input("x", ["N", 3, 12, 12]), 8, 3, 3, 3, pads=[1] * 4)
    w, b = n.const(weight(8, 8, 3, 3)), n.const(0.1 * weight(8))
    x = n.op("FusedConv", x, w, b, domain="com.microsoft", activation="Relu", pads=[1] * 4)
    y = n.op("Flatten", n.op("GlobalAveragePool", x))
    y = n.op(
        "FusedGemm",
        y,
        n.const(weight(8, 16)),
        n.const(weight(16)),
        domain="com.microsoft",
        activation="Relu",
    )
    return n.done(n.op("Gemm", y, n.const(weight(16, 4))))


REFUSED = ("tree_ensemble", "preprocessing")
"""Models in which there is nothing to quantize."""

MODELS: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        conv1d, conv3d, grouped, auto_pad, conv_transpose, gemm_forms, gemm_transposed_input,
        matmul_left, einsum, resize, squeeze_excite, hard_swish, dense_block, attention, lstm, gru,
        rnn, if_branches, loop, scan, produced_weights, shared_weights, tied_embedding,
        several_inputs_and_outputs, dynamic_shapes, fixed_batch, old_opset_7, upsample_9, resize_10,
        float16, bfloat16, microsoft_fused, optimized_by_onnxruntime, newest_operators,
        captured_weights, tree_ensemble, preprocessing,
    )
}  # fmt: skip
