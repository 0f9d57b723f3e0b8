"""An If whose condition is constant becomes the nodes of its branch; others stay."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Net, run
from onnx import TensorProto, helper, numpy_helper

import qtool
from qtool.loading.branches import choose_branches

RNG = np.random.default_rng(5)


def branch(name: str, factor: float, inner: list | None = None) -> onnx.GraphProto:
    """Nodes and weights of the same names in each branch; the second output is a weight."""
    w = numpy_helper.from_array(np.full((4, 3), factor, np.float32), "w")
    nodes = inner or [helper.make_node("MatMul", ["h", "w"], ["out"], "product")]
    second = "u" if inner else "w"
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("out", second)]
    return helper.make_graph(nodes, name, [], outs, [] if inner else [w])


def net(nested: bool = False) -> Net:
    """silero-vad's form: an input of rank 0 chooses one of two networks."""
    net = Net()
    x, rate = net.input("x", "N", 4), net.input("rate", dtype=TensorProto.INT64)
    net.add("Relu", x, out="h")
    net.add("Equal", rate, net.const(np.array(16)), out="c")
    one, two = branch("one", 1.0), branch("two", 2.0)
    if nested:
        inner = helper.make_node(
            "If", ["c"], ["out", "u"], "inner", then_branch=one, else_branch=two
        )
        one = branch("outer", 0, [inner])
    net.add("If", "c", out="y z", name="choice", then_branch=one, else_branch=two)
    net.add("Neg", "h", out="w")  # a name that the branches have too
    return net.output("y", "z", "w")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rate", [16, 8])
def test_a_constant_input_chooses_a_branch(rate, nested):
    made = net(nested)
    model, feeds = made.model(), {"x": RNG.normal(0, 1, (5, 4)).astype(np.float32)}
    feeds["rate"] = np.array(rate)
    notes = choose_branches(model, {"rate": feeds["rate"]})
    key = "then_branch" if rate == 16 else "else_branch"
    assert notes[0].startswith(f"choice (If) takes its {key} in every call")
    assert len(notes) == (2 if nested and rate == 16 else 1)
    assert not {"If", "Equal"} & {node.op_type for node in model.graph}
    assert [v.name for v in model.graph.inputs] == ["x", "rate"]
    expected, test = run(made.proto(), feeds), run(model, feeds)
    assert list(test) == list(expected) == ["y", "z", "w"]
    for name in expected:
        np.testing.assert_array_equal(test[name], expected[name])


def test_the_python_interface_chooses_too(tmp_path):
    onnx.save(net().proto(), tmp_path / "net.onnx")
    named = {"onnx": str(tmp_path / "net.onnx"), "input": {"rate": {"constant": 16}}}
    model = qtool.load(named)
    plan = qtool.quantize(model, [RNG.normal(0, 1, (32, 4)).astype(np.float32)], threads=1)
    assert "takes its then_branch" in model.notes[-1] and "product_1" in plan.quantization.sites


def test_a_condition_that_samples_decide_stays():
    model = net().model()
    assert choose_branches(model, {}) == [] == choose_branches(model, {"x": np.zeros((1, 4))})
    assert "If" in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    "fault", ["no else", "a branch with inputs", "an integer condition", "no condition"]
)
def test_an_if_that_onnx_does_not_define_stays_for_the_runtime_to_refuse(fault):
    made = net()
    proto = made.proto()
    choice = next(node for node in proto.graph.node if node.op_type == "If")
    if fault == "no else":
        del choice.attribute[1]
    elif fault == "a branch with inputs":
        choice.attribute[0].g.input.add(name="h")
    elif fault == "no condition":
        del choice.input[:]
    else:
        choice.input[0] = "rate"
    model = ir.from_proto(proto)
    assert choose_branches(model, {"rate": np.array(16)}) == []
    assert "If" in {node.op_type for node in model.graph}
