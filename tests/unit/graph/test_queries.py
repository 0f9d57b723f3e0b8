"""Questions about graphs."""

import numpy as np
import onnx_ir as ir
import pytest
from models import BUILDERS, Net, rewritten
from onnx import TensorProto, helper

from qtool.graph import queries
from qtool.loading import infer_shapes


def small() -> ir.Model:
    net = Net()
    x = net.input("x", "N", 3, 8, None)
    y = net.add("Conv", x, net.weight(4, 3, 3, 3, name="w"), strides=[2, 2], name="conv", out="y")
    net.add("Relu", y, name="relu", out="z")
    net.add("Add", y, y, name="add", out="s")
    return net.output("z", "s").model()


def test_constants_differ_from_inputs_and_results():
    values = queries.by_name(small().graph)
    assert queries.is_constant(values["w"]) and queries.constant(values["w"]).shape == (4, 3, 3, 3)
    for name in ("x", "y"):
        assert not queries.is_constant(values[name]) and queries.constant(values[name]) is None
    assert queries.constant(None) is None and not queries.is_constant(None)


def test_an_initializer_that_is_an_input_is_no_constant():
    model = small()
    value = model.graph.initializers["w"]
    model.graph.inputs.append(value)
    assert not queries.is_constant(value) and queries.constant(value) is None


def test_readers():
    values = queries.by_name(small().graph)
    assert [n.name for n in queries.readers(values["y"])] == ["relu", "add"]
    assert queries.sole_reader(values["x"]).name == "conv"
    assert queries.sole_reader(values["y"]) is None  # two
    assert queries.sole_reader(values["z"]) is None  # an output


def test_a_reader_that_reads_twice_is_one_reader():
    net = Net()
    x = net.add("Relu", net.input("x", 4), out="r")
    model = net.output(net.add("Add", x, x, name="add", out="y")).model()
    assert queries.sole_reader(queries.by_name(model.graph)["r"]).name == "add"


def test_a_read_output_has_no_sole_reader():
    net = Net()
    x = net.add("Relu", net.input("x", 4), out="r")
    model = net.output(net.add("Neg", x, out="y"), x).model()
    assert queries.sole_reader(queries.by_name(model.graph)["r"]) is None


def test_attributes():
    conv = queries.nodes_by_name(small().graph)["conv"]
    assert queries.attribute(conv, "strides") == (2, 2)
    assert queries.attribute(conv, "group") is None and queries.attribute(conv, "group", 1) == 1
    node = ir.Node("", "Pad", [], [ir.AttrString("mode", "edge"), ir.AttrFloat32("f", 0.5)])
    assert (queries.attribute(node, "mode"), queries.attribute(node, "f")) == ("edge", 0.5)


def test_shapes():
    values = queries.by_name(small().graph)
    assert queries.dims(values["x"]) == ("N", 3, 8, None)
    assert queries.rank(values["x"]) == 4 and queries.rank(None) is None
    assert queries.dims(ir.Value(name="unknown")) is None


@pytest.mark.parametrize(
    ("dtype", "floating"),
    [(ir.DataType.FLOAT, True), (ir.DataType.FLOAT16, True), (ir.DataType.INT64, False)],
)
def test_is_float(dtype, floating):
    assert queries.is_float(ir.Value(name="v", type=ir.TensorType(dtype))) == floating
    assert not queries.is_float(None) and not queries.is_float(ir.Value(name="v"))


def test_all_values_come_in_graph_order():
    assert [v.name for v in queries.all_values(small().graph)] == ["x", "w", "y", "z", "s"]


def nested() -> ir.Model:
    """An If in an If: the inner body reads "x", the outer one "c"; "own" is made inside."""

    def body(name, nodes, out):
        info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [info])

    inner = body("inner", [helper.make_node("Neg", ["x"], ["n"])], "n")
    nodes = [
        helper.make_node("Not", ["c"], ["own"]),
        helper.make_node("If", ["own"], ["i"], then_branch=inner, else_branch=inner),
    ]
    other = body("other", [helper.make_node("Exp", ["x"], ["e"])], "e")
    net = Net()
    net.input("x", 4)
    net.input("c", dtype=TensorProto.BOOL)
    net.add("If", "c", then_branch=body("then", nodes, "i"), else_branch=other, name="if", out="y")
    return net.output("y").model()


def test_bodies_capture_what_they_do_not_make():
    model = nested()
    node = queries.nodes_by_name(model.graph)["if"]
    assert sorted(v.name for v in queries.captured(node)) == ["c", "x"]
    assert queries.captured(queries.nodes_by_name(small().graph)["conv"]) == ()


def test_parameters_are_the_floating_point_numbers():
    net = Net()
    x = net.add("Reshape", net.input("x", "N", 3), net.const(np.array([-1, 3])))
    net.output(net.add("Gemm", x, net.weight(3, 5), net.weight(5), out="y"))
    assert queries.parameters(net.model().graph) == 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 3x3 over 12x12 from 3 and from 8 to 8 channels, then 8 x 5
        ("conv_bn_relu", {"Conv": 144 * 9 * (3 + 8) * 8, "Gemm": 40}),
        ("depthwise", {"Conv": 64 * (27 * 8 + 9 * 8 + 8 * 6)}),
        ("transformer_mlp", {"MatMul": 6 * (8 * 16 + 16 * 8)}),
    ],
)
def test_multiply_accumulates_of_one_sample(name, expected):
    counts: dict[str, int] = {}
    for node in BUILDERS[name]().model().graph:
        if count := queries.macs(node):
            counts[node.op_type] = counts.get(node.op_type, 0) + count
    assert counts == expected


def test_multiply_accumulates_of_other_layers():
    net = Net()
    x = net.input("x", "N", 4, 5, 6)
    y = net.add("ConvTranspose", x, net.weight(4, 2, 3, 3), strides=[2, 2], name="up", out="y")
    z = net.conv(net.input("h", "N", 4, "H", "W"), 4, 4, name="unknown", out="z")
    m = net.add("MatMul", net.input("p", 2, 3, 4), net.input("q", 2, 4, 3), name="product", out="m")
    nodes = queries.nodes_by_name(net.output(y, z, m).model().graph)
    assert queries.macs(nodes["up"]) == 5 * 6 * 4 * 2 * 9  # each input pixel meets the whole kernel
    assert queries.macs(nodes["unknown"]) == 0
    assert queries.macs(nodes["product"]) == 0


@pytest.mark.parametrize(
    ("op", "attributes", "axis"),
    [
        ("Conv", {}, 0),
        ("ConvTranspose", {}, 1),
        ("Gemm", {"transB": 1}, 0),
        ("Gemm", {}, 1),
        ("MatMul", {}, 1),
    ],
)
def test_the_axis_of_output_channels(op, attributes, axis):
    attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
    assert queries.weight_axis(ir.Node("", op, [], attrs)) == axis


def test_rows_of_linear_layers_are_counted_by_sample():
    net = Net()
    x = net.input("x", "N", 6, 8)
    hidden = net.add("Relu", net.add("MatMul", x, net.weight(8, 12)))
    y = net.add("MatMul", hidden, net.weight(12, 4))
    image = net.input("image", "N", 3, 5, 5)
    flat = net.add("Reshape", net.add("Relu", image), net.const(np.array([-1, 75])))
    net.output(y, net.add("MatMul", flat, net.weight(75, 2)))
    model = net.model()
    rewritten(model, "matmul_to_gemm")
    infer_shapes(model)
    counts = {
        node.op_type + str(queries.rank(node.outputs[0])): queries.sample_elements(node.outputs[0])
        for node in model.graph
    }
    by_width = {
        queries.dims(node.outputs[0])[-1]: queries.sample_elements(node.outputs[0])
        for node in model.graph
        if node.op_type == "Gemm"
    }
    assert by_width == {12: 6 * 12, 4: 6 * 4, 2: 2}
    assert counts["Relu2"] == 6 * 12 and counts["Relu4"] == 75
