"""Networks of linear layers and Reshapes compute the same after their rewrites, at any batch."""

import numpy as np
from hypothesis import given, note
from hypothesis import strategies as st
from models import Net, ops, rewritten, run

REWRITES = ("fold_constants", "make_reshapes_static", "matmul_to_gemm")
REWRITES += ("keep_rows", "sequence_first")
FREE = 3  # size of an open axis that is not the batch
WIDTHS = (4, 6, 12)
KINDS = ("linear", "linear", "elementwise", "residual", "reshape", "norm", "attention")
SHAPES = (
    ("N", 12), ("N", 4, 12), ("N", 2, 3, 12), ("N", "T", 12), ("N", 2, "T", 6),
    (1, 4, 12), (8, 4, 6), (4, "N", 12), (3, 12),
)  # fmt: skip


class Layers:
    """A network being drawn: values by name, with their sizes; batch and free axes have names."""

    def __init__(self, shape):
        self.net = Net(opset=20, ir_version=10)
        self.values = [(self.net.input("x", *shape), shape)]

    def add(self, name, shape):
        self.values.append((name, shape))

    def linear(self, draw, x, shape):
        width = draw(st.sampled_from(WIDTHS))
        y = self.net.add("MatMul", x, self.net.weight(shape[-1], width))
        bias = draw(st.sampled_from((None, (width,), (1, width))))
        if bias is not None:
            terms = [y, self.net.weight(*bias)]
            y = self.net.add("Add", *(terms if draw(st.booleans()) else terms[::-1]))
        self.add(y, (*shape[:-1], width))

    def elementwise(self, draw, x, shape):
        self.add(self.net.add(draw(st.sampled_from(("Relu", "Gelu", "Neg"))), x), shape)

    def residual(self, draw, x, shape):
        others = [name for name, other in self.values if other == shape]
        self.add(self.net.add("Add", x, draw(st.sampled_from(others))), shape)

    def norm(self, draw, x, shape):
        scale, shift = (self.net.weight(shape[-1]) for _ in range(2))
        self.add(self.net.add("LayerNormalization", x, scale, shift, axis=-1), shape)

    def attention(self, draw, x, shape):
        """Add products of heads of two values that layers make of one, where it has three axes."""
        if len(shape) != 3 or isinstance(shape[1], str):
            return self.norm(draw, x, shape)
        batch, length, width = (d if isinstance(d, int) else -1 for d in shape)
        heads = self.net.const(np.array([batch, length, 2, width // 2]))
        perms = (0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)
        parts = [self.net.add("MatMul", x, self.net.weight(width, width)) for _ in perms]
        parts = [
            self.net.add("Transpose", self.net.add("Reshape", part, heads), perm=perm)
            for part, perm in zip(parts, perms, strict=True)
        ]
        scores = self.net.add("Softmax", self.net.add("MatMul", *parts[:2]), axis=-1)
        y = self.net.add("Transpose", self.net.add("MatMul", scores, parts[2]), perm=perms[0])
        sizes = self.net.const(np.array([batch, length, width]))
        self.add(self.net.add("Reshape", y, sizes), shape)

    def reshape(self, draw, x, shape):
        """Divide the last axis in two or join the last two, in one of three forms of the sizes."""
        if len(shape) > 2 and all(isinstance(d, int) for d in shape[-2:]):
            result = (*shape[:-2], shape[-2] * shape[-1])
        else:
            result = (*shape[:-1], 2, shape[-1] // 2)
        form = draw(st.sampled_from(("copied", "computed", "inferred")))
        if form == "computed":
            sizes = self.net.const(np.array([d for d in result if isinstance(d, int)]))
            axes = [k for k, d in enumerate(result) if isinstance(d, str)]
            all_sizes = self.net.add("Shape", x)
            parts, start = [], 0
            for k in range(len(result)):
                at = self.net.const(np.array([k if k in axes else start]))
                start += k not in axes
                parts.append(self.net.add("Gather", all_sizes if k in axes else sizes, at, axis=0))
            y = self.net.add("Reshape", x, self.net.add("Concat", *parts, axis=0))
        else:
            named = [d for d in result if isinstance(d, str)]
            fill = -1 if form == "inferred" and len(named) == 1 else 0
            sizes = [fill if isinstance(d, str) else d for d in result]
            y = self.net.add("Reshape", x, self.net.const(np.array(sizes)))
        self.add(y, result)


@st.composite
def networks(draw):
    shape = draw(st.sampled_from(SHAPES))
    layers = Layers(shape)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=9)):
        x = draw(st.integers(-min(3, len(layers.values)), -1))
        getattr(layers, kind)(draw, *layers.values[x])
    made = [name for name, _ in layers.values[1:]]
    read = {name for node in layers.net.nodes for name in node.input}
    layers.net.output(*[n for n in made if n not in read or draw(st.integers(0, 4)) == 0])
    return layers.net, shape


@given(case=networks())
def test_the_function_of_linear_layers_stays(case):
    net, shape = case
    model, before = net.model(), net.proto()
    counts = rewritten(model, *REWRITES)
    note(f"{shape} {counts} {ops(model)}")
    for rows in (0, 1, 8):
        sizes = [{"N": rows, "T": FREE}.get(d, d) for d in shape]
        feeds = {"x": np.random.default_rng(rows).normal(size=sizes).astype(np.float32)}
        expected = run(before, feeds)
        result = run(model, feeds)
        assert list(result) == list(expected)
        for name, array in expected.items():
            assert result[name].shape == array.shape
            # float32 in another order
            atol = 1e-5 * np.abs(array).max(initial=1)
            np.testing.assert_allclose(result[name], array, rtol=0, atol=atol)
