"""New names and initializers, also in graphs with subgraphs."""

import numpy as np
import onnx_ir as ir

from qtool.graph.edit import Names, add_initializer


def looped() -> ir.Graph:
    """x -> If, whose one body holds ``inner`` (a constant) and ``made`` (by ``inner_node``)."""
    body = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    held = add_initializer(body, "inner", np.zeros(2, np.float32))
    node = ir.Node("", "Relu", [held], name="inner_node")
    node.outputs[0].name = "made"
    body.append(node)
    x = ir.val("x")
    outer = ir.Node("", "If", [x], [ir.AttrGraph("then_branch", body)], name="choose")
    outer.outputs[0].name = "y"
    return ir.Graph([x], [outer.outputs[0]], nodes=[outer], opset_imports={"": 21})


def test_unique_names_differ_from_each_other_and_from_those_of_graph_and_subgraphs():
    names = Names(looped())
    for used in ("x", "y", "choose", "inner", "inner_node", "made"):
        assert names.unique(used) == f"{used}_1"
    assert [names.unique("new") for _ in range(3)] == ["new", "new_1", "new_2"]


def test_an_initializer_is_registered_with_its_data_type_and_shape():
    graph = looped()
    turned = np.arange(6, dtype=np.int32).reshape(2, 3).T
    value = add_initializer(graph, "w", turned)
    assert graph.initializers["w"] is value and value.const_value.name == "w"
    assert (value.dtype, value.shape) == (ir.DataType.INT32, [3, 2])
    np.testing.assert_array_equal(value.const_value.numpy(), turned)
    narrow = ir.Tensor(np.ones(4, ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4)
    assert add_initializer(graph, "n", narrow).dtype == ir.DataType.INT4
