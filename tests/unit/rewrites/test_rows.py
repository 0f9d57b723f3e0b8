"""Encoders compute on rows between their layers, and heads are multiplied where they lie."""

import numpy as np
import pytest
from models import Net, bind, feeds_for, ops, optimized, rewritten, run

from qtool.graph import queries
from qtool.rewrites import REWRITES

WIDTH, LENGTH, HEADS = 8, 6, 2
# Shapes are inferred once, in front of the rewrites, as in a run.
ALL = ("make_reshapes_static", "matmul_to_gemm", "keep_rows", "sequence_first")
SPLIT, SPLIT_TRANSPOSED = (0, 2, 1, 3), (0, 2, 3, 1)


def encoded(net, names=ALL):
    """Apply rewrites; (model, count of the last one). Outputs must stay for 0, 1 and 5 samples."""
    model, before = net.model(), net.proto()
    bind(model, feeds_for(model))
    for name in names:
        count = REWRITES[name](model, lambda node: True)
    for samples in (0, 1, 5):
        x = np.random.default_rng(0).normal(size=(samples, LENGTH, WIDTH)).astype(np.float32)
        feeds = {"x": x if net.batch == "N" else np.resize(x, (net.batch, LENGTH, WIDTH))}
        for want, got in zip(*(run(m, feeds).values() for m in (before, model)), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    return model, count


class Encoder(Net):
    """Blocks of an encoder; ``batch`` is the first size of its input."""

    def __init__(self, batch="N"):
        super().__init__(opset=20, ir_version=10)
        self.batch = batch
        self.x = self.input("x", batch, LENGTH, WIDTH)

    def linear(self, x, c_in=WIDTH, c_out=WIDTH):
        return self.add("Add", self.add("MatMul", x, self.weight(c_in, c_out)), self.weight(c_out))

    def layer_norm(self, x):
        return self.add("LayerNormalization", x, self.weight(WIDTH), self.weight(WIDTH), axis=-1)

    def sizes(self, *inner):
        """Sizes of a Reshape, as torch's tracing exporter computes them."""
        if isinstance(self.batch, int):
            return self.const(np.array([self.batch, *inner]))
        batch = self.add("Gather", self.add("Shape", self.x), self.const(np.array(0)))
        batch = self.add("Unsqueeze", batch, self.const(np.array([0])))
        return self.add("Concat", batch, *(self.const(np.array([d])) for d in inner), axis=0)

    def heads(self, x, perm, scale=None):
        sizes = self.sizes(LENGTH, HEADS, WIDTH // HEADS)
        y = self.add("Transpose", self.add("Reshape", self.linear(x), sizes), perm=perm)
        return y if scale is None else self.add("Mul", y, self.const(scale))

    def attention(self, x, scale=None):
        q, k = self.heads(x, SPLIT, scale), self.heads(x, SPLIT_TRANSPOSED, scale)
        scores = self.add("Softmax", self.add("MatMul", q, k), axis=-1)
        y = self.add("MatMul", scores, self.heads(x, SPLIT))
        y = self.add("Transpose", y, perm=SPLIT)
        return self.linear(self.add("Reshape", y, self.sizes(LENGTH, WIDTH)))

    def feed_forward(self, x):
        return self.linear(self.add("Gelu", self.linear(x, WIDTH, 12)), 12, WIDTH)

    def block(self, x, norm_first):
        if norm_first:
            x = self.add("Add", x, self.attention(self.layer_norm(x), 0.7))
            return self.add("Add", x, self.feed_forward(self.layer_norm(x)))
        x = self.layer_norm(self.add("Add", x, self.attention(x)))
        return self.layer_norm(self.add("Add", x, self.feed_forward(x)))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_an_encoder_has_no_reshapes_between_layers_and_no_transposed_heads(
    norm_first, batch, tmp_path
):
    net = Encoder(batch)
    y = net.block(net.block(net.x, norm_first), norm_first)
    net.output(y)
    model, count = encoded(net)
    assert count == 2 * 3
    # In front and at the end, and in each block three of heads and one behind the products.
    assert ops(model).count("Reshape") == 2 + 2 * 4
    executed = optimized(model, tmp_path)
    products = [n for n in executed.graph if n.op_type == "FusedMatMul"]
    transposed = [
        (queries.attribute(n, "transBatchA", 0), queries.attribute(n, "transBatchB", 0))
        for n in products
    ]
    assert transposed == [(1, 1), (0, 1)] * 2
    # Those behind the products; where there are several samples, one of the input and the output.
    assert ops(executed).count("Transpose") == 2 + 2 * (batch != 1)


def test_rows_of_a_sample_are_counted_in_any_order():
    net = Encoder()
    net.output(net.block(net.x, False))
    model, _ = encoded(net)
    counts = {
        queries.sample_elements(n.outputs[0])
        for n in model.graph
        if n.op_type == "LayerNormalization"
    }
    assert counts == {LENGTH * WIDTH}


def test_a_sum_with_rows_of_one_term_only_stays():
    """A Reshape of the other term would be added."""
    net = Encoder()
    net.output(net.add("Softmax", net.add("Add", net.linear(net.x), net.add("Neg", net.x))))
    assert encoded(net, ALL[:-1])[1] == 0


@pytest.mark.parametrize("term", ["position", "three axes", "another size", "another axis"])
def test_what_does_not_compute_each_row_alone_stays(term):
    net = Encoder()
    y = net.linear(net.x)
    if term == "position":
        y = net.add("Add", y, net.weight(LENGTH, WIDTH))
    elif term == "three axes":
        y = net.add("Mul", y, net.weight(1, 1, WIDTH))
    elif term == "another size":
        one = net.add("ReduceMean", net.x, net.const(np.array([0, 1])))
        y = net.add("Add", y, net.linear(one))
    else:
        y = net.add("LayerNormalization", y, net.weight(LENGTH, WIDTH), axis=1)
    net.output(net.linear(y))
    assert encoded(net, ALL[:-1])[1] == 0


@pytest.mark.parametrize("read", [False, True])
def test_rows_that_are_an_output_keep_their_order(read):
    net = Encoder()
    q, k = (net.heads(net.x, perm) for perm in (SPLIT, SPLIT_TRANSPOSED))
    net.output(net.add("MatMul", q, k))
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model, *ALL[:2])
    if read:
        model.graph.outputs.append(next(n for n in model.graph if n.op_type == "Gemm").outputs[0])
    assert REWRITES["sequence_first"](model, lambda node: True) == 2 * (not read)


def test_a_part_that_saves_no_transpose_keeps_its_order():
    net = Encoder()
    net.output(net.add("Exp", net.heads(net.x, SPLIT)))
    assert encoded(net)[1] == 0
