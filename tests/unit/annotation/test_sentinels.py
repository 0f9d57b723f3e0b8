"""Constants that mask scores in front of a Softmax get no grid."""

from dataclasses import replace

import numpy as np
import pytest
from models import Net, cpu, feeds_for, frozen_plan, rewritten, run, sqnr
from onnx import TensorProto

from qtool.annotation.annotator import annotate
from qtool.annotation.sentinels import sentinel_reasons
from qtool.emitters import emit_qdq
from qtool.quant.bit_widths import Bits
from qtool.targets.target import OpRule

STYLES = ("product", "reversed", "subtracted", "where", "filled")
LOWEST = (-3.4028234663852886e38, -1e4, -100.0)
# A factor of 100 may belong to scores.
CASES = [(s, n) for s in STYLES for n in LOWEST if n < -100 or s not in ("reversed", "subtracted")]


def pooled(style: str, sentinel: float) -> Net:
    """Attention pooling: masked scores of a linear layer weigh the rows of another."""
    net = Net(opset=17)
    x = net.input("x", "N", 6, 8)
    ones = net.const(np.float32([1, 1, 1, 1, 0, 0]).reshape(6, 1))
    number = net.const(np.float32(sentinel))
    scores = net.add("MatMul", x, net.weight(8, 4), name="scores")
    if style == "product":  # scores + (1 - mask) * sentinel
        mask = net.add("Mul", net.add("Sub", net.const(np.float32(1)), ones), number, name="mask")
        scores = net.add("Add", scores, mask, name="masked")
    elif style == "reversed":  # scores + (mask - 1) * -sentinel
        size = net.const(np.float32(-sentinel))
        mask = net.add("Mul", net.add("Sub", ones, net.const(np.float32(1))), size, name="mask")
        scores = net.add("Add", scores, mask, name="masked")
    elif style == "subtracted":  # scores - (1 - mask) * -sentinel
        size = net.const(np.float32(-sentinel))
        mask = net.add("Mul", net.add("Sub", net.const(np.float32(1)), ones), size, name="mask")
        scores = net.add("Sub", scores, mask, name="masked")
    elif style == "where":
        keep = net.add("Cast", ones, to=TensorProto.BOOL)
        scores = net.add("Where", keep, scores, number, name="masked")
    else:  # filled, then cut to the padding
        size = net.add("Slice", net.add("Shape", x), *(net.const(np.array([k])) for k in (1, 2)))
        fill = net.add("ConstantOfShape", size, value=filled(sentinel), name="fill")
        column = net.add("Unsqueeze", fill, net.const(np.array([1])), name="column")
        mask = net.add("Mul", net.add("Sub", net.const(np.float32(1)), ones), column, name="mask")
        scores = net.add("Add", scores, mask, name="masked")
    weights = net.add("Softmax", scores, axis=1, name="softmax")
    y = net.add("Mul", weights, net.add("MatMul", x, net.weight(8, 4)), name="weigh")
    return net.output(net.add("MatMul", y, net.weight(4, 4), name="last", out="y"))


def filled(number: float):
    from onnx import helper

    return helper.make_tensor("value", TensorProto.FLOAT, [1], [number])


def integer_softmax():
    """A target that computes Softmax and Where on codes, so that masks could reach a grid."""
    target = cpu()
    elementwise = OpRule("elementwise", inputs=())
    ops = {**target.ops, "Softmax": elementwise, "Where": elementwise, "Sub": elementwise}
    return replace(target, ops={**ops, "Unsqueeze": OpRule("same_grid")})


@pytest.mark.parametrize(("style", "sentinel"), CASES)
def test_a_mask_gets_no_grid_and_the_reason_names_it(style, sentinel):
    model = pooled(style, sentinel).model()
    plan = annotate(model, integer_softmax(), Bits())
    assert f"{sentinel:.3g}" in plan.float_nodes["masked"]
    assert "Softmax" in plan.float_nodes["softmax"]
    assert {"scores", "last"} <= set(plan.sites)
    masked = next(n for n in model.graph if n.name == "masked").outputs[0].name
    assert masked not in plan.grid_of


@pytest.mark.parametrize("style", STYLES)
def test_without_a_sentinel_the_ops_may_compute_on_codes(style):
    model = pooled(style, -3.0).model()
    assert sentinel_reasons(list(model.graph)) == {}


def test_a_large_number_that_no_softmax_reads_is_none():
    net = Net()
    x = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    x = net.add("Add", x, net.const(np.float32([-500.0])), name="offset")
    model = net.output(net.conv(x, 4, 4, out="y")).model()
    assert sentinel_reasons(list(model.graph)) == {}


def test_a_product_with_weights_ends_the_search():
    net = Net()
    x = net.add("Add", net.input("x", "N", 8), net.const(np.float32([-1e4])), name="offset")
    y = net.add("MatMul", x, net.weight(8, 4))
    model = net.output(net.add("Softmax", y, out="y")).model()
    assert sentinel_reasons(list(model.graph)) == {}


@pytest.mark.parametrize(("style", "sentinel"), CASES)
def test_the_file_follows_the_float_model(style, sentinel):
    net = pooled(style, sentinel)
    model, proto = net.model(), net.proto()
    rewritten(model)
    feeds = feeds_for(model, seed=1)
    file = emit_qdq(model, frozen_plan(model), cpu())
    assert sqnr(run(proto, feeds)["y"], run(file, feeds)["y"]) > 20
