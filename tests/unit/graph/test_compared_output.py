"""The output that files are compared by, and the value that plans are compared by."""

import numpy as np
import pytest
from models import Net
from onnx import TensorProto, helper

from qtool.graph.compared_output import compared_values, decisive_value, evaluated_output


def detector(*outputs: str):
    """Boxes and scores, those that NonMaxSuppression selects, and how many they are."""
    net = Net()
    x = net.input("x", "N", 3, 4)
    net.add("MatMul", x, net.weight(4, 4), out="boxes")
    net.add("Sigmoid", net.add("Transpose", x, perm=[0, 2, 1]), out="scores")
    limits = [net.const(np.array([v], t)) for v, t in ((5, np.int64), (0.5, np.float32))]
    net.add("NonMaxSuppression", "boxes", "scores", *limits, out="selected")
    columns = net.const(np.array([0, 2], np.int64))
    net.add("GatherND", "boxes", net.add("Gather", "selected", columns, axis=1), out="chosen")
    net.add("Shape", "selected", out="count")
    net.add("ArgMax", "scores", axis=1, out="classes")
    integers = {"selected", "count", "classes"}
    for name in outputs:
        kind = TensorProto.INT64 if name in integers else TensorProto.FLOAT
        net.outputs.append(helper.make_tensor_value_info(name, kind, None))
    return net.model()


@pytest.mark.parametrize(
    ("outputs", "evaluated", "decisive", "compared"),
    [
        (("boxes", "scores"), "boxes", "boxes", ["boxes", "scores"]),
        (("count", "chosen", "scores"), "scores", "scores", ["scores"]),
        (("classes", "scores"), "classes", "scores", ["scores"]),
        (("classes",), "classes", "classes", ["boxes", "scores"]),
        (("selected",), None, "boxes", ["boxes", "scores"]),
        (("chosen", "count"), None, "boxes", ["boxes", "scores"]),
    ],
)
def test_outputs_whose_size_depends_on_values_are_passed_over(
    outputs, evaluated, decisive, compared
):
    model = detector(*outputs)
    assert evaluated_output(model) == evaluated and decisive_value(model) == decisive
    assert list(compared_values(model)) == compared
