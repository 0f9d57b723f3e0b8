"""The executor: hook, cuts, liveness, raw edges, fallback, captured values, gradients, errors."""

import gc
import weakref

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qtool.errors import DataError, ModelError
from qtool.runtime.executor import OPS, Executor

RNG = np.random.default_rng(1)


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def graph_model(nodes, inputs, outputs, initializers=(), opset=21):
    """An onnx model of float32 values without static shapes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in inputs],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in dict(initializers).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def chain(count=6, opset=21):
    """x -> Relu -> Neg -> Relu ...: values v1 .. v<count>."""
    names = ["x", *(f"v{i}" for i in range(1, count + 1))]
    ops = ["Neg", "Abs"]
    nodes = [
        helper.make_node(ops[i % 2], [names[i]], [names[i + 1]], f"n{i + 1}") for i in range(count)
    ]
    return graph_model(nodes, ["x"], [names[-1]], opset=opset)


def diamond():
    """y = (x + w) * (x + w) with a Conv-free initializer; nodes add, mul."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["s"], "add"),
        helper.make_node("Mul", ["s", "s"], ["p"], "mul"),
        helper.make_node("Sub", ["p", "s"], ["y"], "sub"),
    ]
    return graph_model(nodes, ["x"], ["y"], {"w": array(4)})


def executor(model, **options):
    return Executor(ir.from_proto(model), **options)


def in_runtime(model, feeds):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_the_hook_sees_every_value_once_and_replaces_it():
    seen = []

    def observe(value, tensor):
        seen.append(value.name)
        return tensor + 1 if value.name == "w" else tensor

    model = diamond()
    x, w = array(4), numpy_helper.to_array(model.graph.initializer[0])
    got = executor(model)({"x": x}, observe)["y"].numpy()
    assert sorted(seen) == ["p", "s", "w", "x", "y"]
    s = x + (w + 1)
    np.testing.assert_array_equal(got, s * s - s)


def test_an_initializer_is_loaded_once_and_shared_with_the_model():
    model, data = ir.from_proto(diamond()), array(4)
    data.flags.writeable = False
    model.graph.initializers["w"].const_value = ir.tensor(data)
    run, places = Executor(model), set()

    def observe(value, tensor):
        if value.name == "w":
            places.add(tensor.data_ptr())
        return tensor

    for _ in range(2):
        run({"x": array(4)}, observe)
    assert places == {data.ctypes.data}


def test_external_data_stays_in_its_file(tmp_path):
    model = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], ["x"], ["y"], {"w": array(64, 64)}
    )
    path, x = tmp_path / "m.onnx", array(3, 64)
    want = in_runtime(model, {"x": x})[0]
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    got = Executor(ir.load(path))({"x": x})["y"].numpy()
    # one float32 product of length 64 in two orders of summation
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_any_value_can_be_fed_and_returned():
    run, seen = executor(chain()), []

    def observe(value, tensor):
        seen.append(value.name)
        return tensor

    out = run({"v2": torch.tensor([-3.0])}, observe, outputs=["v4", "v2"])
    assert list(out) == ["v4", "v2"] and out["v4"].item() == 3.0
    assert seen == ["v2", "v3", "v4"]


def test_a_fed_output_of_a_split_is_not_overwritten():
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], "split", axis=0, num_outputs=2),
        helper.make_node("Add", ["a", "b"], ["y"], "add"),
    ]
    run = executor(graph_model(nodes, ["x"], ["y"]))
    got = run({"x": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0])})
    assert got["y"].item() == 11.0


@pytest.mark.parametrize(
    ("feeds", "options", "word"),
    [
        ({}, {}, "'x'"),
        ({"x": 0, "v22": 0}, {}, "'v22'"),
        ({"x": 0}, {"outputs": ["v9"]}, "'v9'"),
        ({"x": 0}, {"raw": [("n1", "nope")]}, "'nope'"),
    ],
)
def test_a_wrong_name_is_an_error_that_says_it(feeds, options, word):
    feeds = {name: torch.zeros(1) for name in feeds}
    with pytest.raises(DataError, match=word):
        executor(chain())(feeds, **options)


def test_values_die_after_their_last_reader():
    alive: list[weakref.ref] = []
    most = 0

    def observe(value, tensor):
        nonlocal most
        fresh = tensor.clone()
        alive.append(weakref.ref(fresh))
        most = max(most, sum(ref() is not None for ref in alive))
        return fresh

    with torch.no_grad():
        executor(chain(count=12))({"x": torch.zeros(3)}, observe)
    # A node's input and its output; nothing older.
    assert len(alive) == 13 and most == 2
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 0


def test_an_edge_can_read_the_value_before_the_hook():
    def observe(value, tensor):
        return tensor * 0 if value.name == "s" else tensor

    x = array(4)
    model = diamond()
    s = x + numpy_helper.to_array(model.graph.initializer[0])
    got = executor(model)({"x": x}, observe, raw={("sub", "s")})["y"].numpy()
    np.testing.assert_array_equal(got, -s)
    got = executor(model)({"x": x}, observe, raw=[("mul", "s")])["y"].numpy()
    np.testing.assert_array_equal(got, s * s)


def test_an_op_outside_the_table_runs_in_the_runtime_and_is_counted():
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], "neg"),
        helper.make_node("Unique", ["n"], ["u", "", "", "counts"], "unique", sorted=1),
    ]
    model = graph_model(nodes, ["x"], ["u", "counts"])
    x = np.array([3, 1, 3, 2], np.float32)
    run = executor(model)
    for _ in range(2):
        got = run({"x": x})
    assert run.fallbacks == {"Unique": 1}
    assert got["u"].tolist() == [-3, -2, -1] and got["counts"].tolist() == [2, 1, 1]


def test_an_attribute_outside_the_table_runs_in_the_runtime():
    nodes = [
        helper.make_node(
            "RNN",
            ["x", "w", "r"],
            ["y"],
            "rnn",
            hidden_size=2,
            activations=["Affine"],
            activation_alpha=[0.5],
            activation_beta=[0.1],
        )
    ]
    model = graph_model(nodes, ["x"], ["y"], {"w": array(1, 2, 3), "r": array(1, 2, 2)})
    x = array(4, 1, 3)
    run = executor(model)
    np.testing.assert_array_equal(run({"x": x})["y"].numpy(), in_runtime(model, {"x": x})[0])
    assert run.fallbacks == {"RNN": 1}


def test_a_contrib_op_runs_in_the_runtime():
    node = helper.make_node("QuickGelu", ["x"], ["y"], "quick", domain="com.microsoft", alpha=1.5)
    model = graph_model([node], ["x"], ["y"])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    x, run = array(2, 5), executor(model)
    np.testing.assert_array_equal(run({"x": x})["y"].numpy(), in_runtime(model, {"x": x})[0])
    assert run.fallbacks == {"QuickGelu": 1}


def test_sequences_pass_through_the_runtime():
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], "split", axis=0),
        helper.make_node("ConcatFromSequence", ["parts"], ["y"], "join", axis=1),
    ]
    model, x = graph_model(nodes, ["x"], ["y"]), array(3, 2)
    got = executor(model)({"x": x})["y"].numpy()
    np.testing.assert_array_equal(got, in_runtime(model, {"x": x})[0])


def loop_model():
    """Three times: state = state + outer, where outer = Neg(x) is captured."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "outer"], ["next"], "b_add"),
            helper.make_node("Identity", ["cond_in"], ["cond_out"], "b_cond"),
            helper.make_node("Identity", ["next"], ["scanned"], "b_scan"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scanned", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["outer"], "neg"),
        helper.make_node("Abs", ["x"], ["start"], "abs"),
        helper.make_node("Loop", ["trips", "", "start"], ["final", "all"], "loop", body=body),
    ]
    trips = np.array(3, np.int64)
    return graph_model(nodes, ["x"], ["final", "all"], {"trips": trips})


def if_model():
    """Branches that return a captured value's double, or negative."""
    branches = {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Sub")):
        branches[name] = helper.make_graph(
            [helper.make_node(op, ["hidden", "hidden"], [f"{name}_y"], f"{name}_n")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
        )
    nodes = [
        helper.make_node("Neg", ["x"], ["hidden"], "neg"),
        helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["chosen"], "greater"),
        helper.make_node("If", ["chosen"], ["y"], "if", **branches),
    ]
    return graph_model(nodes, ["x"], ["y"], {"zero": np.array(0, np.float32)})


@pytest.mark.parametrize("build", [loop_model, if_model])
@pytest.mark.parametrize("sign", [1, -1])
def test_bodies_read_captured_values(build, sign):
    model, x = build(), np.float32(sign) * np.array([1, 2, 3], np.float32)
    seen = []

    def observe(value, tensor):
        seen.append(value.name)
        return tensor

    got = executor(model)({"x": x}, observe)
    for have, want in zip(got.values(), in_runtime(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(have.numpy(), want)
    assert {"outer", "hidden"} & set(seen)


def test_a_captured_value_is_what_the_hook_returned():
    def observe(value, tensor):
        return tensor * 10 if value.name == "outer" else tensor

    x = np.array([1, 2], np.float32)
    got = executor(loop_model())({"x": x}, observe)["final"].numpy()
    np.testing.assert_array_equal(got, x - 30 * x)


def test_a_failing_node_is_named_with_its_shapes():
    model = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "last_layer")],
        ["x"],
        ["y"],
        {"w": array(4, 2)},
    )
    with pytest.raises(ModelError, match=r"'last_layer' \(MatMul\).*\[1, 3\].*\[4, 2\]"):
        executor(model)({"x": array(1, 3)})


def test_a_bfloat16_initializer_is_read():
    import ml_dtypes

    w = np.array([1.5, -2], ml_dtypes.bfloat16)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"], "add"),
    ]
    run = executor(graph_model(nodes, ["x"], ["y"], {"w": w}))
    assert run({"x": np.zeros(2, np.float32)})["y"].tolist() == [1.5, -2.0]


def test_int4_weights_with_block_scales():
    weights = RNG.integers(-8, 8, size=(4, 3))
    scales = array(2, 3)
    codes = helper.make_tensor("w", TensorProto.INT4, (4, 3), weights.flatten())
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], "dq", axis=0, block_size=2)
    model = graph_model([node], [], ["y"], {"s": scales})
    model.graph.initializer.append(codes)
    want = weights * np.repeat(scales, 2, 0)
    np.testing.assert_array_equal(executor(model)({})["y"].numpy(), want.astype(np.float32))


def test_shape_arithmetic_stays_on_the_cpu():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], "shape"),
        helper.make_node("Gather", ["sizes", "zero"], ["batch"], "gather"),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["batch1"], "unsqueeze"),
        helper.make_node("Concat", ["batch1", "rest"], ["target"], "concat", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"], "reshape"),
        helper.make_node("Mul", ["flat", "half"], ["halved"], "mul"),
        helper.make_node("Clip", ["halved", "low"], ["clipped"], "clip"),
        helper.make_node("Concat", ["batch1", "twelve"], ["sizes2"], "cat2", axis=0),
        helper.make_node("ConstantOfShape", ["sizes2"], ["zeros"], "zeros"),
        helper.make_node("Slice", ["clipped", "zero1", "two", "axes1"], ["cut"], "slice"),
        helper.make_node("Concat", ["cut", "zeros"], ["joined"], "join", axis=1),
        helper.make_node("MatMul", ["joined", "w"], ["y"], "matmul"),
    ]
    constants = {
        "zero": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
        "half": np.array(0.5, np.float32),
        "low": np.array(0, np.float32),
        "zero1": np.array([0]),
        "two": np.array([2]),
        "twelve": np.array([12]),
        "axes1": np.array([1]),
        "w": array(14, 3),
    }
    model = graph_model(nodes, ["x"], ["y", "sizes2"], constants)
    got = executor(model, device="meta")({"x": array(5, 3, 4)})
    assert got["y"].device.type == "meta" and list(got["y"].shape) == [5, 3]
    assert got["sizes2"].device.type == "cpu" and got["sizes2"].tolist() == [5, 12]
    on_cpu = executor(model)({"x": array(5, 3, 4)})
    assert list(on_cpu["y"].shape) == [5, 3]


GRADIENTS = {
    "Conv": ([(2, 2, 5, 4), (4, 1, 3, 3), (4,)], {"group": 2, "pads": [1, 0, 2, 1]}),
    "ConvTranspose": ([(1, 2, 3, 3), (2, 2, 2, 3)], {"strides": [2, 1], "pads": [0, 1, 1, 0]}),
    "Gemm": ([(3, 4), (2, 4), (2,)], {"transB": 1, "alpha": 0.5}),
    "LayerNormalization": ([(3, 4), (4,), (4,)], {}),
    "Softmax": ([(3, 4)], {"axis": 0}),
    "BatchNormalization": ([(2, 3, 4), (3,), (3,)], {}),
    "LSTM": ([(3, 2, 2), (1, 8, 2), (1, 8, 2)], {"hidden_size": 2}),
    "Resize": ([(1, 1, 3, 3)], {"mode": "cubic"}),
    "Gather": ([(3, 4)], {"axis": 1}),
    "AveragePool": ([(1, 2, 5, 5)], {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]}),
}
EXTRA = {
    "BatchNormalization": {"mean": np.array([0.5, 0, -1]), "var": np.array([0.5, 1, 2])},
    "Resize": {"": None, "scales": np.array([1, 1, 2, 1.5], np.float32)},
    "Gather": {"indices": np.array([2, -1])},
}


@pytest.mark.parametrize("op", GRADIENTS)
def test_gradients_reach_inputs_and_weights(op):
    shapes, attributes = GRADIENTS[op]
    extra = EXTRA.get(op, {})
    names = [f"i{k}" for k in range(len(shapes))]
    node = helper.make_node(op, [*names, *extra], ["y"], "n", **attributes)
    model = graph_model([node], names, ["y"], {k: v for k, v in extra.items() if v is not None})
    run = executor(model)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes
    ]
    assert torch.autograd.gradcheck(
        lambda *inputs: run(dict(zip(names, inputs, strict=True)))["y"], tensors
    )
    assert run.fallbacks == {}


def test_every_op_of_the_table_is_an_onnx_operator():
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert set(OPS) <= names
    assert len(OPS) >= 150
