"""Graphs of one digest compute the same: whatever changes the function changes the digest."""

import numpy as np
import onnx_ir as ir
import pytest
from models import BUILDERS

from qtool.graph.content_digest import content_digest
from qtool.graph.queries import constant


def test_a_copy_has_the_same_digest():
    model = BUILDERS["residual"]().model()
    assert content_digest(model) == content_digest(model.clone())


def weight(model: ir.Model) -> None:
    value = next(iter(model.graph.initializers.values()))
    value.const_value = ir.tensor(np.float32(constant(value) * (1 + 1e-6)))


def attribute(model: ir.Model) -> None:
    conv = next(node for node in model.graph if node.op_type == "Conv")
    conv.attributes["dilations"] = ir.AttrInt64s("dilations", [2, 2])


def node(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Relu").op_type = "Abs"


def edge(model: ir.Model) -> None:
    add = next(node for node in model.graph if node.op_type == "Add")
    add.replace_input_with(1, add.inputs[0])


@pytest.mark.parametrize("change", [weight, attribute, node, edge], ids=lambda each: each.__name__)
def test_another_function_has_another_digest(change):
    model = BUILDERS["residual"]().model()
    before = content_digest(model)
    change(model)
    assert content_digest(model) != before
