"""Blocks as exporters write them, and small models of these: what a generator combines.

Image blocks map a value [N, C, 16, 16] to one of the same shape, sequence blocks one of [N, 10, 32]
to one of the same shape; heads make the outputs.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.zoo_models import Built, Net, weight

CHANNELS, SIZE = 16, 16
TOKENS, WIDTH, HEADS = 10, 32, 4
BINS = 16  # of the distribution that DFL averages
ANCHORS = 3

Block = Callable[[Net, str], str]
Head = Callable[[Net, str], list[str]]


def scalar(net: Net, value: float, *shape: int) -> str:
    return net.const(np.full(shape, value, np.float32))


def ints(net: Net, *values: int) -> str:
    return net.const(np.array(values, np.int64))


def vector(net: Net, size: int, around: float, *shape: int) -> str:
    return net.const((around + 0.3 * weight(size, 1)).astype(np.float32).reshape(*shape))


# -- blocks of images ------------------------------------------------------------------------------


def conv_relu(n: Net, x: str) -> str:
    return str(n.op("Relu", n.conv(x, CHANNELS, CHANNELS, 3, 3, pads=[1] * 4)))


def depthwise_pointwise(n: Net, x: str) -> str:
    y = n.op("Clip", n.conv(x, CHANNELS, CHANNELS, 3, 3, group=CHANNELS, pads=[1] * 4),
             scalar(n, 0.0), scalar(n, 6.0))  # fmt: skip
    return n.conv(y, CHANNELS, CHANNELS, 1, 1)


def residual(n: Net, x: str) -> str:
    return str(n.op("Relu", n.op("Add", x, conv_relu(n, x))))


def hard_swish_clip(n: Net, x: str) -> str:
    y = n.conv(x, CHANNELS, CHANNELS, 3, 3, pads=[1] * 4)
    gate = n.op("Clip", n.op("Add", y, scalar(n, 3.0)), scalar(n, 0.0), scalar(n, 6.0))
    return str(n.op("Mul", y, n.op("Div", gate, scalar(n, 6.0))))


def hard_swish_relu6(n: Net, x: str) -> str:
    """Relu and Min instead of Clip, the product first."""
    y = n.conv(x, CHANNELS, CHANNELS, 1, 1)
    gate = n.op("Min", n.op("Relu", n.op("Add", y, scalar(n, 3.0))), scalar(n, 6.0))
    return str(n.op("Mul", n.op("Mul", y, gate), scalar(n, 1 / 6)))


def silu(n: Net, x: str) -> str:
    y = n.conv(x, CHANNELS, CHANNELS, 3, 3, pads=[1] * 4)
    return str(n.op("Mul", y, n.op("Sigmoid", y)))


def silu_exp(n: Net, x: str) -> str:
    """The sigmoid written as 1 / (1 + exp(-x))."""
    y = n.conv(x, CHANNELS, CHANNELS, 1, 1)
    return str(n.op("Div", y, n.op("Add", n.op("Exp", n.op("Neg", y)), scalar(n, 1.0))))


def squeeze_excite(n: Net, x: str) -> str:
    """Mean by ReduceMean, gate by a decomposed hard sigmoid."""
    pooled = n.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    y = n.conv(n.op("Relu", n.conv(pooled, 4, CHANNELS, 1, 1)), CHANNELS, 4, 1, 1)
    gate = n.op("Clip", n.op("Add", y, scalar(n, 3.0)), scalar(n, 0.0), scalar(n, 6.0))
    return str(n.op("Mul", x, n.op("Div", gate, scalar(n, 6.0))))


def learnable_affine(n: Net, x: str) -> str:
    y = n.op("Mul", n.conv(x, CHANNELS, CHANNELS, 3, 3, pads=[1] * 4), scalar(n, 1.7, 1))
    y = n.op("Relu", n.op("Add", y, scalar(n, -0.2, 1)))
    return str(n.op("Add", n.op("Mul", y, scalar(n, 0.6, 1)), scalar(n, 0.3, 1)))


def group_norm(n: Net, x: str) -> str:
    """As torch writes it: InstanceNormalization of groups, then a scale and a shift a channel."""
    y = n.conv(x, CHANNELS, CHANNELS, 3, 3, pads=[1] * 4)
    groups = n.op("Reshape", y, ints(n, 0, 4, -1))
    one, zero = n.const(np.ones(4, np.float32)), n.const(np.zeros(4, np.float32))
    normed = n.op("InstanceNormalization", groups, one, zero, epsilon=1e-5)
    back = n.op("Reshape", normed, ints(n, -1, CHANNELS, SIZE, SIZE))
    scaled = n.op("Mul", back, vector(n, CHANNELS, 1.0, CHANNELS, 1, 1))
    return str(n.op("Add", scaled, vector(n, CHANNELS, 0.0, CHANNELS, 1, 1)))


def concat(n: Net, x: str) -> str:
    a, b = n.conv(x, 8, CHANNELS, 1, 1), conv_relu(n, x)
    return n.conv(n.op("Concat", a, b, axis=1), CHANNELS, 24, 1, 1)


def pool_and_resize(n: Net, x: str) -> str:
    y = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    scales = n.const(np.array([1, 1, 2, 2], np.float32))
    return str(n.op("Resize", n.conv(y, CHANNELS, CHANNELS, 1, 1), "", scales, mode="nearest",
                    nearest_mode="floor", coordinate_transformation_mode="asymmetric"))  # fmt: skip


def shuffle(n: Net, x: str) -> str:
    y = n.op("Reshape", conv_relu(n, x), ints(n, 0, 2, 8, SIZE, SIZE))
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3, 4]), ints(n, 0, 16, SIZE, SIZE))
    return n.conv(y, CHANNELS, CHANNELS, 1, 1)


def grouped(n: Net, x: str) -> str:
    """Groups of four channels, then groups of one channel with two outputs."""
    y = n.op("Relu", n.conv(x, CHANNELS, CHANNELS, 3, 3, group=4, pads=[1] * 4))
    y = n.op("Relu", n.conv(y, 2 * CHANNELS, CHANNELS, 3, 3, group=CHANNELS, pads=[1] * 4))
    return n.conv(y, CHANNELS, 2 * CHANNELS, 1, 1)


def transposed(n: Net, x: str) -> str:
    """Down and up again, with a skip connection."""
    y = n.op("LeakyRelu", n.conv(x, CHANNELS, CHANNELS, 4, 4, strides=[2, 2], pads=[1] * 4),
             alpha=0.2)  # fmt: skip
    w, b = n.const(weight(CHANNELS, CHANNELS, 4, 4)), n.const(0.1 * weight(CHANNELS))
    up = n.op("ConvTranspose", y, w, b, strides=[2, 2], pads=[1] * 4)
    return n.conv(n.op("Concat", x, up, axis=1), CHANNELS, 2 * CHANNELS, 1, 1)


def pixel_shuffle(n: Net, x: str) -> str:
    """Its upsampling as Reshape and Transpose, with sizes from Shape."""
    y = n.conv(x, 4 * CHANNELS, CHANNELS, 3, 3, strides=[2, 2], pads=[1] * 4)
    sizes = [n.op("Slice", n.op("Shape", y), ints(n, k), ints(n, k + 1)) for k in (2, 3)]
    split = n.op("Concat", ints(n, 0, CHANNELS, 2, 2), *sizes, axis=0)
    y = n.op("Transpose", n.op("Reshape", y, split), perm=[0, 1, 4, 2, 5, 3])
    doubled = [n.op("Mul", size, ints(n, 2)) for size in sizes]
    y = n.op("Reshape", y, n.op("Concat", ints(n, 0, CHANNELS), *doubled, axis=0))
    return str(n.op("Relu", y))


def channel_attention(n: Net, x: str) -> str:
    """Attention between channels: normalized queries and keys, a learned temperature."""
    heads = n.op("Split", n.conv(x, 3 * CHANNELS, CHANNELS, 1, 1), outputs=3, axis=1)
    q, k, v = (n.op("Reshape", part, ints(n, 0, 2, CHANNELS // 2, -1)) for part in heads)
    norms = [n.op("ReduceL2", part, axes=[-1], keepdims=1) for part in (q, k)]
    q, k = (n.op("Div", part, n.op("Clip", norm, scalar(n, 1e-12)))
            for part, norm in zip((q, k), norms, strict=True))  # fmt: skip
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = n.op("Softmax", n.op("Mul", scores, vector(n, 2, 1.0, 2, 1, 1)), axis=-1)
    y = n.op("Reshape", n.op("MatMul", scores, v), n.op("Shape", x))
    return str(n.op("Add", x, n.conv(y, CHANNELS, CHANNELS, 1, 1)))


def layer_scale(n: Net, x: str) -> str:
    """ConvNeXt's block: depthwise 7 x 7, LayerNormalization over channels, a small last scale."""
    y = n.conv(x, CHANNELS, CHANNELS, 7, 7, group=CHANNELS, pads=[3] * 4)
    y = n.op("Transpose", y, perm=[0, 2, 3, 1])
    y = n.op("LayerNormalization", y, vector(n, CHANNELS, 1.0, CHANNELS),
             vector(n, CHANNELS, 0.0, CHANNELS), axis=-1)  # fmt: skip
    y = n.op("Relu", n.linear(y, 4 * CHANNELS, CHANNELS))
    y = n.op("Mul", n.linear(y, CHANNELS, 4 * CHANNELS), vector(n, CHANNELS, 0.3, CHANNELS))
    return str(n.op("Add", x, n.op("Transpose", y, perm=[0, 3, 1, 2])))


IMAGE_BLOCKS: tuple[Block, ...] = (
    conv_relu, depthwise_pointwise, residual, hard_swish_clip, hard_swish_relu6, silu, silu_exp,
    squeeze_excite, learnable_affine, group_norm, concat, pool_and_resize, shuffle, grouped,
    transposed, pixel_shuffle, channel_attention, layer_scale,
)  # fmt: skip


# -- blocks of sequences ---------------------------------------------------------------------------


def feed_forward(n: Net, x: str) -> str:
    """A residual block with Gelu by erf."""
    y = n.linear(x, 64, WIDTH)
    erf = n.op("Add", n.op("Erf", n.op("Div", y, scalar(n, 2**0.5))), scalar(n, 1.0))
    y = n.op("Mul", n.op("Mul", y, erf), scalar(n, 0.5))
    return str(n.op("Add", x, n.linear(y, WIDTH, 64)))


def feed_forward_tanh(n: Net, x: str) -> str:
    """A residual block with Gelu by tanh."""
    y = n.linear(x, 64, WIDTH)
    cubic = n.op("Mul", n.op("Pow", y, scalar(n, 3.0)), scalar(n, 0.044715))
    inner = n.op("Mul", n.op("Add", y, cubic), scalar(n, (2 / np.pi) ** 0.5))
    gate = n.op("Add", n.op("Tanh", inner), scalar(n, 1.0))
    y = n.op("Mul", n.op("Mul", y, scalar(n, 0.5)), gate)
    return str(n.op("Add", x, n.linear(y, WIDTH, 64)))


def gated(n: Net, x: str) -> str:
    """A residual block with SwiGLU."""
    a, b = n.linear(x, 64, WIDTH), n.linear(x, 64, WIDTH)
    y = n.op("Mul", n.op("Mul", a, n.op("Sigmoid", a)), b)
    return str(n.op("Add", x, n.linear(y, WIDTH, 64)))


def layer_norm(n: Net, x: str) -> str:
    centered = n.op("Sub", x, n.op("ReduceMean", x, axes=[-1]))
    square = n.op("ReduceMean", n.op("Pow", centered, scalar(n, 2.0)), axes=[-1])
    deviation = n.op("Sqrt", n.op("Add", square, scalar(n, 1e-5)))
    scaled = n.op("Mul", n.op("Div", centered, deviation), vector(n, WIDTH, 1.0, WIDTH))
    return n.linear(n.op("Add", scaled, vector(n, WIDTH, 0.0, WIDTH)), WIDTH, WIDTH)


def rms_norm(n: Net, x: str) -> str:
    square = n.op("ReduceMean", n.op("Pow", x, scalar(n, 2.0)), axes=[-1])
    root = n.op("Sqrt", n.op("Add", square, scalar(n, 1e-6)))
    normed = n.op("Mul", x, n.op("Reciprocal", root))
    return n.linear(n.op("Mul", vector(n, WIDTH, 1.0, WIDTH), normed), WIDTH, WIDTH)


def _attention(n: Net, x: str, masked: Callable[[str], str]) -> str:
    shape = ints(n, 0, TOKENS, HEADS, WIDTH // HEADS)
    q, k, v = (n.op("Reshape", n.linear(x, WIDTH, WIDTH), shape) for _ in range(3))
    q, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 3, 1]))
    scores = masked(n.op("Mul", scores, scalar(n, (WIDTH // HEADS) ** -0.5)))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    joined = n.op("Transpose", mixed, perm=[0, 2, 1, 3])
    y = n.linear(n.op("Reshape", joined, ints(n, 0, TOKENS, WIDTH)), WIDTH, WIDTH)
    return str(n.op("Add", x, y))


def _mask(n: Net) -> str:
    """Return the mask [N, 1, 1, TOKENS], int64; the input is declared once."""
    if "attention_mask" not in n.inputs:
        n.input("attention_mask", ["N", TOKENS], "int64")
    return str(n.op("Unsqueeze", "attention_mask", ints(n, 1, 2)))


def mask_add(n: Net, x: str) -> str:
    """The mask of BERT: (1 - m) * -1e4 is added."""
    floats = n.op("Cast", _mask(n), to=1)
    added = n.op("Mul", n.op("Sub", scalar(n, 1.0), floats), scalar(n, -10000.0))
    return _attention(n, x, lambda scores: str(n.op("Add", scores, added)))


def mask_where(n: Net, x: str) -> str:
    """The mask of newer exporters: Where(m, scores, lowest float)."""
    truth = n.op("Cast", _mask(n), to=9)
    lowest = scalar(n, float(np.finfo(np.float32).min))
    return _attention(n, x, lambda scores: str(n.op("Where", truth, scores, lowest)))


def mask_causal(n: Net, x: str) -> str:
    """The mask of decoders: the upper triangle of -inf is added."""
    triangle = np.triu(np.full((TOKENS, TOKENS), -np.inf, np.float32), 1)
    return _attention(n, x, lambda scores: str(n.op("Add", scores, n.const(triangle))))


def rotary(n: Net, x: str) -> str:
    """Attention with rotary embeddings, angles from the length, and a mask made by Trilu."""
    size = WIDTH // HEADS
    parts = (n.op("Reshape", n.linear(x, WIDTH, WIDTH), ints(n, 0, 0, HEADS, size)) for _ in "qkv")
    q, k, v = (n.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    length = n.op("Slice", n.op("Shape", x), ints(n, 1), ints(n, 2))
    steps = (n.const(np.array(0)), n.op("Squeeze", length, ints(n, 0)), n.const(np.array(1)))
    positions = n.op("Unsqueeze", n.op("Cast", n.op("Range", *steps), to=1), ints(n, 1))
    rates = (10000.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    angles = n.op("MatMul", positions, n.const(rates[None]))
    angles = n.op("Concat", angles, angles, axis=-1)

    def rotated(part: str) -> str:
        low, high = n.op("Split", part, outputs=2, axis=3)
        turned = n.op("Concat", n.op("Neg", high), low, axis=-1)
        return str(n.op("Add", n.op("Mul", part, n.op("Cos", angles)),
                        n.op("Mul", turned, n.op("Sin", angles))))  # fmt: skip

    scores = n.op("MatMul", rotated(q), n.op("Transpose", rotated(k), perm=[0, 1, 3, 2]))
    lowest = n.op("Expand", scalar(n, -np.inf, 1, 1), n.op("Concat", length, length, axis=0))
    masked = n.op("Add", n.op("Mul", scores, scalar(n, size**-0.5)),
                  n.op("Trilu", lowest, n.const(np.array(1))))  # fmt: skip
    mixed = n.op("MatMul", n.op("Softmax", masked, axis=-1), v)
    joined = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), ints(n, 0, 0, WIDTH))
    return str(n.op("Add", x, n.linear(joined, WIDTH, WIDTH)))


def einsum_attention(n: Net, x: str) -> str:
    """Attention whose projections and products are all Einsum."""
    size = WIDTH // HEADS
    q, k, v = (n.op("Einsum", x, n.const(weight(WIDTH, HEADS, size)), equation="bnd,dhk->bhnk")
               for _ in range(3))  # fmt: skip
    scores = n.op("Einsum", q, k, equation="bhid,bhjd->bhij")
    mixed = n.op("Einsum", n.op("Softmax", scores, axis=-1), v, equation="bhij,bhjd->bhid")
    out = n.const(weight(HEADS, size, WIDTH))
    return str(n.op("Add", x, n.op("Einsum", mixed, out, equation="bhnk,hkd->bnd")))


def causal_convolution(n: Net, x: str) -> str:
    """Dilated convolutions over the tokens: padded in front, and padded around and cut off."""
    y = n.op("Transpose", x, perm=[0, 2, 1])
    padded = n.op("Pad", y, ints(n, 0, 0, 4, 0, 0, 0), scalar(n, 0.0))
    z = n.op("Relu", n.conv(padded, WIDTH, WIDTH, 3, dilations=[2]))
    z = n.conv(z, WIDTH, WIDTH, 3, pads=[2, 2])
    z = n.op("Slice", z, ints(n, 0), ints(n, -2), ints(n, 2))
    return str(n.op("Transpose", n.op("Add", y, n.op("Relu", z)), perm=[0, 2, 1]))


def experts(n: Net, x: str) -> str:
    """A mixture of four linear layers, two of them chosen for each token."""
    shares = n.op("Softmax", n.linear(x, 4, WIDTH), axis=-1)
    values, chosen = n.op("TopK", shares, ints(n, 2), outputs=2, axis=-1)
    values = n.op("Div", values, n.op("ReduceSum", values, ints(n, -1), keepdims=1))
    gates = n.op("ScatterElements", n.op("Mul", shares, scalar(n, 0.0)), chosen, values, axis=-1)
    each = n.op("MatMul", n.op("Unsqueeze", x, ints(n, 1)), n.const(weight(WIDTH, WIDTH, 4).T))
    gates = n.op("Unsqueeze", n.op("Transpose", gates, perm=[0, 2, 1]), ints(n, 3))
    mixed = n.op("ReduceSum", n.op("Mul", each, gates), ints(n, 1), keepdims=0)
    return str(n.op("Add", x, mixed))


SEQUENCE_BLOCKS: tuple[Block, ...] = (
    feed_forward, feed_forward_tanh, gated, layer_norm, rms_norm, mask_add, mask_where, mask_causal,
    rotary, einsum_attention, causal_convolution, experts,
)  # fmt: skip


# -- heads -----------------------------------------------------------------------------------------


def classifier(n: Net, x: str) -> list[str]:
    y = n.op("Flatten", n.op("GlobalAveragePool", x))
    return [str(n.op("Gemm", y, n.const(weight(CHANNELS, 10)), n.const(0.1 * weight(10))))]


def classifier_and_map(n: Net, x: str) -> list[str]:
    """Two outputs: probabilities, and a map of small numbers."""
    scores = n.op("Softmax", classifier(n, x)[0], axis=1)
    return [str(scores), str(n.op("Sigmoid", n.conv(x, 2, CHANNELS, 1, 1)))]


def _scores(n: Net, x: str, classes: int) -> str:
    """Return [N, classes, cells]: the logits are low, as those of detectors."""
    logits = n.op("Add", n.conv(x, classes, CHANNELS, 1, 1), scalar(n, -3.0))
    return str(n.op("Reshape", logits, ints(n, 0, classes, SIZE * SIZE)))


def _anchors(n: Net) -> tuple[str, str]:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    centers = np.stack([x.ravel(), y.ravel()]).astype(np.float32)
    return n.const(centers[None]), scalar(n, 8.0)


def dfl_head(n: Net, x: str) -> list[str]:
    """YOLOv8: a distribution for each side of a box, its mean by a convolution with 0 .. 15."""
    cells = SIZE * SIZE
    sides = n.op("Reshape", n.conv(x, 4 * BINS, CHANNELS, 3, 3, pads=[1] * 4),
                 ints(n, 0, 4, BINS, cells))  # fmt: skip
    spread = n.op("Softmax", n.op("Transpose", sides, perm=[0, 2, 1, 3]), axis=1)
    project = n.const(np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1))
    mean = n.op("Reshape", n.op("Conv", spread, project), ints(n, 0, 4, cells))
    low, high = n.op("Split", mean, outputs=2, axis=1)
    anchors, stride = _anchors(n)
    first, last = n.op("Sub", anchors, low), n.op("Add", anchors, high)
    center = n.op("Div", n.op("Add", first, last), scalar(n, 2.0))
    boxes = n.op("Mul", n.op("Concat", center, n.op("Sub", last, first), axis=1), stride)
    return [str(n.op("Concat", boxes, n.op("Sigmoid", _scores(n, x, 6)), axis=1))]


def boxes_and_scores(n: Net, x: str) -> list[str]:
    """YOLOX: offsets, sizes by exp and scores in one tensor, pixels beside probabilities.

    Logarithms of sizes stay small, as in a trained head: exp of a grid over 20 has steps of 8 %.
    """
    offsets = n.op("Reshape", n.conv(x, 4, CHANNELS, 1, 1), ints(n, 0, 4, SIZE * SIZE))
    xy, wh = n.op("Split", offsets, outputs=2, axis=1)
    wh = n.op("Mul", n.op("Tanh", wh), scalar(n, 2.0))
    anchors, stride = _anchors(n)
    xy = n.op("Mul", n.op("Add", xy, anchors), stride)
    wh = n.op("Mul", n.op("Exp", wh), stride)
    joined = n.op("Concat", xy, wh, n.op("Sigmoid", _scores(n, x, 6)), axis=1)
    return [str(n.op("Transpose", joined, perm=[0, 2, 1]))]


def one_convolution(n: Net, x: str) -> list[str]:
    """YOLOv5: all quantities are channels of one convolution, decoded after a Split."""
    y = n.conv(x, 9, CHANNELS, 1, 1)
    cells = n.op("Transpose", n.op("Reshape", y, ints(n, 0, 9, SIZE * SIZE)), perm=[0, 2, 1])
    xy, wh, scores = n.op("Split", n.op("Sigmoid", cells), ints(n, 2, 2, 5), outputs=3, axis=2)
    centers = np.mgrid[:SIZE, :SIZE].reshape(2, -1).T[None].astype(np.float32)
    xy = n.op("Mul", n.op("Add", n.op("Mul", xy, scalar(n, 2.0)), n.const(centers)),
              scalar(n, 8.0))  # fmt: skip
    wh = n.op("Mul", n.op("Pow", n.op("Mul", wh, scalar(n, 2.0)), scalar(n, 2.0)), scalar(n, 40.0))
    return [str(n.op("Concat", xy, wh, scores, axis=2))]


def anchors_undecoded(n: Net, x: str) -> list[str]:
    """YOLO without its decoding: offsets and logits of three anchors in one tensor.

    As in a trained head, logits are many times as large as offsets, and most are low.
    """
    boxes = np.tile(np.arange(9) < 4, ANCHORS)
    kernel = weight(9 * ANCHORS, CHANNELS) * np.where(boxes, 0.2, 2.0)[:, None]
    bias = np.where(boxes, 0.1, -6.0) + 0.1 * weight(9 * ANCHORS, 1)[:, 0]
    constants = (n.const(a.astype(np.float32)) for a in (kernel[:, :, None, None], bias))
    cells = n.op("Reshape", n.op("Conv", x, *constants), ints(n, 0, ANCHORS, 9, SIZE, SIZE))
    return [str(n.op("Transpose", cells, perm=[0, 1, 3, 4, 2]))]


def corner_matrix(n: Net, x: str) -> list[str]:
    """Centers and sizes become corners by a product with a matrix, as for NonMaxSuppression."""
    joined = boxes_and_scores(n, x)[0]
    boxes, scores = n.op("Split", joined, ints(n, 4, 6), outputs=2, axis=2)
    corners = [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]
    return [str(n.op("MatMul", boxes, n.const(np.array(corners, np.float32)))), str(scores)]


IMAGE_HEADS: tuple[Head, ...] = (
    classifier, classifier_and_map, dfl_head, boxes_and_scores, one_convolution,
    anchors_undecoded, corner_matrix,
)  # fmt: skip


def pooled_classifier(n: Net, x: str) -> list[str]:
    mean = n.op("ReduceMean", x, axes=[1], keepdims=0)
    return [str(n.op("Gemm", mean, n.const(weight(WIDTH, 5)), n.const(0.1 * weight(5))))]


def spans(n: Net, x: str) -> list[str]:
    """Question answering: start and end logits are two outputs."""
    start, end = n.op("Split", n.linear(x, 2, WIDTH), outputs=2, axis=2)
    return [str(n.op("Squeeze", v, ints(n, 2))) for v in (start, end)]


def tagger(n: Net, x: str) -> list[str]:
    return [str(n.op("LogSoftmax", n.linear(x, 7, WIDTH), axis=-1))]


SEQUENCE_HEADS: tuple[Head, ...] = (pooled_classifier, spans, tagger)


# -- models ----------------------------------------------------------------------------------------


def image_model(blocks: tuple[Block, ...], head: Head) -> Built:
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, SIZE, SIZE]), CHANNELS, 3, 3, 3, pads=[1] * 4))
    for block in blocks:
        x = block(n, x)
    return n.done(*head(n, x))


def sequence_model(blocks: tuple[Block, ...], head: Head) -> Built:
    n = Net()
    x = n.linear(n.input("x", ["N", TOKENS, WIDTH]), WIDTH, WIDTH)
    for block in blocks:
        x = block(n, x)
    return n.done(*head(n, x))


def _of_blocks(name: str, build: Callable[..., Built], *blocks: Block) -> Callable[[], Built]:
    head = classifier if build is image_model else pooled_classifier

    def model() -> Built:
        return build(blocks, head)

    model.__name__ = name
    return model


def _of_head(head: Head) -> Callable[[], Built]:
    def model() -> Built:
        return image_model((conv_relu, silu), head)

    model.__name__ = head.__name__
    return model


PATTERNS: dict[str, Callable[[], Built]] = {
    model.__name__: model
    for model in (
        _of_blocks("hard_swish_squeeze_excite", image_model, hard_swish_clip, squeeze_excite,
                   hard_swish_relu6),
        _of_blocks("silu_decomposed", image_model, silu, silu_exp),
        _of_blocks("learnable_affine", image_model, learnable_affine, learnable_affine),
        _of_blocks("group_norm", image_model, group_norm, group_norm),
        _of_blocks("rms_norm", sequence_model, rms_norm, rms_norm),
        _of_blocks("layer_norm", sequence_model, layer_norm, feed_forward_tanh),
        _of_blocks("mask_add", sequence_model, mask_add, gated),
        _of_blocks("mask_where", sequence_model, mask_where, feed_forward),
        _of_blocks("mask_causal", sequence_model, mask_causal, feed_forward),
        _of_blocks("grouped_narrow", image_model, grouped, grouped),
        _of_blocks("encoder_decoder", image_model, transposed, pixel_shuffle),
        _of_blocks("layer_scale", image_model, layer_scale, channel_attention),
        _of_blocks("rotary", sequence_model, rotary, einsum_attention),
        _of_blocks("causal_convolution", sequence_model, causal_convolution, experts),
        *(_of_head(head) for head in IMAGE_HEADS[1:]),
    )
}  # fmt: skip
