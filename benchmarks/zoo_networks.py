"""Small networks of kinds in the field that no pattern of the zoo's is a part of."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from benchmarks.zoo_models import Built, Net, weight
from benchmarks.zoo_patterns import TOKENS, WIDTH, ints, scalar, vector


def norm(n: Net, x: str, size: int = WIDTH) -> str:
    return str(n.op("LayerNormalization", x, vector(n, size, 1.0, size),
                    vector(n, size, 0.0, size), axis=-1))  # fmt: skip


def segmentation() -> Built:
    """Dilated branches and a pooled one, resized to sizes from Shape; a label map beside scores."""
    n = Net()
    x = n.input("x", ["N", 3, "H", "W"])
    y = n.op("Relu", n.conv(x, 16, 3, 3, 3, strides=[2, 2], pads=[1] * 4))
    y = n.op("Relu", n.conv(y, 24, 16, 3, 3, strides=[2, 2], pads=[1] * 4))
    parts = [n.op("Relu", n.conv(y, 8, 24, 1, 1))]
    parts += [n.op("Relu", n.conv(y, 8, 24, 3, 3, dilations=[d] * 2, pads=[d] * 4)) for d in (2, 3)]
    pooled = n.op("Relu", n.conv(n.op("GlobalAveragePool", y), 8, 24, 1, 1))

    def resized(value: str, like: str, mode: str) -> str:
        own = n.op("Slice", n.op("Shape", value), ints(n, 0), ints(n, 2))
        other = n.op("Slice", n.op("Shape", like), ints(n, 2), ints(n, 4))
        sizes = n.op("Concat", own, other, axis=0)
        return str(n.op("Resize", value, "", "", sizes, mode="linear",
                        coordinate_transformation_mode=mode))  # fmt: skip

    joined = n.op("Concat", *parts, resized(pooled, y, "align_corners"), axis=1)
    scores = n.conv(n.op("Relu", n.conv(joined, 16, 32, 1, 1)), 5, 16, 1, 1)
    scores = resized(scores, x, "half_pixel")
    labels = n.op("Cast", n.op("ArgMax", scores, axis=1, keepdims=0), to=1)
    return n.done(scores, labels)


def scatter_cache() -> Built:
    """A step of a decoder that writes its key and value into caches at a position."""
    n = Net()
    x, position = n.input("x", [1, 1, WIDTH]), n.input("position", [1], "int64", 8)
    caches = [n.input(name, [1, 8, WIDTH]) for name in ("keys", "values")]
    q, *new = (n.linear(x, WIDTH, WIDTH) for _ in range(3))
    place = n.op("Unsqueeze", n.op("Concat", ints(n, 0), position, axis=0), ints(n, 0))
    keys, values = (n.op("ScatterND", cache, place, n.op("Squeeze", part, ints(n, 0)))
                    for cache, part in zip(caches, new, strict=True))  # fmt: skip
    scores = n.op("MatMul", q, n.op("Transpose", keys, perm=[0, 2, 1]))
    scores = n.op("Softmax", n.op("Mul", scores, scalar(n, WIDTH**-0.5)), axis=-1)
    y = n.op("Add", x, n.linear(n.op("MatMul", scores, values), WIDTH, WIDTH))
    return n.done(n.linear(y, 6, WIDTH), keys, values)


def sequence_lengths() -> Built:
    """A bidirectional LSTM that reads as many steps of each sample as an input says."""
    n, hidden = Net(), 20
    x = n.op("Transpose", n.linear(n.input("x", ["N", 12, 10]), 16, 10), perm=[1, 0, 2])
    lengths = n.op("Add", n.input("lengths", ["N"], "int32", 12), n.const(np.array([1], np.int32)))
    w, r = (n.const(np.stack([weight(4 * hidden, size) for _ in "fb"])) for size in (16, hidden))
    y, last, _ = n.op("LSTM", x, w, r, n.const(0.1 * weight(2, 8 * hidden)), lengths, outputs=3,
                      hidden_size=hidden, direction="bidirectional")  # fmt: skip
    y = n.op("Reshape", n.op("Transpose", y, perm=[2, 0, 1, 3]), ints(n, 0, 0, -1))
    last = n.op("Reshape", n.op("Transpose", last, perm=[1, 0, 2]), ints(n, 0, -1))
    steps = n.op("LogSoftmax", n.linear(y, 7, 2 * hidden), axis=-1)
    return n.done(steps, n.op("Gemm", last, n.const(weight(2 * hidden, 3))))


def sentence_embedding() -> Built:
    """Embedded tokens, their mean under a mask, and a vector of length 1."""
    n = Net()
    ids, mask = n.input("ids", ["N", 12], "int64", 50), n.input("mask", ["N", 12], "int64", 2)
    first = n.const(np.eye(1, 12, dtype=np.float32))  # no sentence is empty
    mask = n.op("Max", n.op("Cast", mask, to=1), first)
    x = n.op("Gather", n.const(5 * weight(50, 24)), ids)
    x = n.op("Add", x, n.op("Relu", n.linear(x, 24, 24)))
    mask = n.op("Expand", n.op("Unsqueeze", mask, ints(n, 2)), n.op("Shape", x))
    total = n.op("ReduceSum", n.op("Mul", x, mask), ints(n, 1), keepdims=0)
    count = n.op("ReduceSum", mask, ints(n, 1), keepdims=0)
    y = n.linear(n.op("Div", total, n.op("Clip", count, scalar(n, 1e-9))), 16, 24)
    length = n.op("Clip", n.op("ReduceL2", y, axes=[1], keepdims=1), scalar(n, 1e-12))
    return n.done(n.op("Div", y, n.op("Expand", length, n.op("Shape", y))))


def counted_positions() -> Built:
    """An encoder whose positions count the tokens that are no padding (CumSum)."""
    n = Net()
    ids = n.input("ids", ["N", 12], "int64", 40)
    mask = n.op("Cast", n.op("Not", n.op("Equal", ids, ints(n, 1))), to=6)
    counts = n.op("Mul", n.op("CumSum", mask, n.const(np.array(1))), mask)
    positions = n.op("Add", n.op("Cast", counts, to=7), ints(n, 1))
    tables = [n.op("Gather", n.const(5 * weight(size, WIDTH)), rows)
              for size, rows in ((40, ids), (20, positions))]  # fmt: skip
    x = norm(n, n.op("Add", *tables))
    floats = n.op("Cast", n.op("Unsqueeze", mask, ints(n, 1)), to=1)
    masked = n.op("Mul", n.op("Sub", scalar(n, 1.0), floats), scalar(n, -65504.0))
    q, k, v = (n.linear(x, WIDTH, WIDTH) for _ in range(3))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1]))
    scores = n.op("Add", n.op("Mul", scores, scalar(n, WIDTH**-0.5)), masked)
    x = n.op("Add", x, n.op("MatMul", n.op("Softmax", scores, axis=-1), v))
    first = n.op("Gather", x, n.const(np.array(0)), axis=1)
    return n.done(n.linear(n.op("Tanh", n.linear(first, WIDTH, WIDTH)), 3, WIDTH))


def shifted_windows() -> Built:
    """Swin: attention in windows of 4 x 4, some shifted and masked, with a table of biases."""
    n, side = Net(), 8
    x = n.conv(n.input("x", ["N", 3, 32, 32]), WIDTH, 3, 4, 4, strides=[4, 4])
    x = n.op("Transpose", n.op("Reshape", x, ints(n, 0, WIDTH, -1)), perm=[0, 2, 1])
    for shift in (0, 2):
        y = n.op("Reshape", norm(n, x), ints(n, 0, side, side, WIDTH))
        y = _windows(n, _rolled(n, y, shift), (-1, 2, 4, 2, 4, WIDTH), (-1, 16, WIDTH))
        y = _windows(n, _window_attention(n, y, shift), (-1, 2, 2, 4, 4, WIDTH),
                     (-1, side, side, WIDTH))  # fmt: skip
        y = n.op("Reshape", _rolled(n, y, side - shift), ints(n, -1, side * side, WIDTH))
        x = n.op("Add", x, y)
        x = n.op("Add", x, n.linear(n.op("Relu", n.linear(norm(n, x), 64, WIDTH)), WIDTH, 64))
    grid = n.op("Reshape", x, ints(n, -1, side, side, WIDTH))
    corners = [n.op("Slice", grid, ints(n, j, i), ints(n, 99, 99), ints(n, 1, 2), ints(n, 2, 2))
               for i in (0, 1) for j in (0, 1)]  # fmt: skip
    merged = n.op("Reshape", n.op("Concat", *corners, axis=3), ints(n, -1, 16, 4 * WIDTH))
    y = n.op("ReduceMean", n.linear(merged, 48, 4 * WIDTH), axes=[1], keepdims=0)
    return n.done(n.linear(y, 5, 48))


def _rolled(n: Net, x: str, shift: int) -> str:
    """Return [N, 8, 8, C] shifted along both axes, as torch.roll is exported."""
    for axis in (1, 2) if shift % 8 else ():
        back = n.op("Slice", x, ints(n, shift), ints(n, 2**31 - 1), ints(n, axis))
        front = n.op("Slice", x, ints(n, 0), ints(n, shift), ints(n, axis))
        x = n.op("Concat", back, front, axis=axis)
    return x


def _windows(n: Net, x: str, split: tuple[int, ...], joined: tuple[int, ...]) -> str:
    parts = n.op("Transpose", n.op("Reshape", x, ints(n, *split)), perm=[0, 1, 3, 2, 4, 5])
    return str(n.op("Reshape", parts, ints(n, *joined)))


def _window_attention(n: Net, x: str, shift: int) -> str:
    """Return attention of 4 heads within windows [windows, 16, C]; shifted ones have a mask."""
    parts = n.op("Reshape", n.linear(x, 3 * WIDTH, WIDTH), ints(n, -1, 16, 3, 4, 8))
    parts = n.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (n.op("Gather", parts, n.const(np.array(i)), axis=0) for i in range(3))
    q = n.op("Mul", q, scalar(n, 8**-0.5))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    places = np.stack(np.meshgrid(range(4), range(4), indexing="ij")).reshape(2, 16)
    rows, columns = places[:, :, None] - places[:, None] + 3
    bias = n.op("Gather", n.const(weight(49, 4)), n.const((7 * rows + columns).reshape(-1)))
    bias = n.op("Transpose", n.op("Reshape", bias, ints(n, 16, 16, 4)), perm=[2, 0, 1])
    scores = n.op("Add", scores, n.op("Unsqueeze", bias, ints(n, 0)))
    if shift:
        region = np.repeat([0, 1, 2], [4, 2, 2])
        regions = (3 * region[:, None] + region).reshape(2, 4, 2, 4).swapaxes(1, 2).reshape(4, 16)
        apart = regions[:, :, None] != regions[:, None]
        mask = n.const(np.where(apart, np.float32(-100), np.float32(0))[None, :, None])
        scores = n.op("Add", n.op("Reshape", scores, ints(n, -1, 4, 4, 16, 16)), mask)
        scores = n.op("Reshape", scores, ints(n, -1, 4, 16, 16))
    mixed = n.op(
        "Transpose", n.op("MatMul", n.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3]
    )
    return n.linear(n.op("Reshape", mixed, ints(n, -1, 16, WIDTH)), WIDTH, WIDTH)


def half_weights() -> Built:
    """Weights stored as float16 that a Cast widens, as size-reducing converters write them."""
    n = Net()

    def half(array: np.ndarray) -> str:
        return str(n.op("Cast", n.const(array.astype(np.float16)), to=1))

    x = n.input("x", ["N", 3, 16, 16])
    y = n.op("Conv", x, half(weight(16, 3, 3, 3)), half(0.1 * weight(16)), pads=[1] * 4)
    y = n.op("Conv", n.op("Relu", y), half(weight(16, 16, 3, 3)), half(0.1 * weight(16)))
    y = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", y)))
    return n.done(n.op("Add", n.op("MatMul", y, half(weight(16, 5))), half(weight(5))))


def siamese() -> Built:
    """Two inputs through one backbone; the features of one are the kernel for the other."""
    n = Net()
    template, x = n.input("template", [1, 3, 16, 16]), n.input("x", [1, 3, 32, 32])
    weights = [n.const(0.1 * weight(16) if size is None else weight(16, size, 3, 3))
               for size in (3, None, 16, None)]  # fmt: skip

    def features(image: str) -> str:
        y = n.op("Relu", n.op("Conv", image, *weights[:2], strides=[2, 2]))
        return str(n.op("Conv", y, *weights[2:]))

    kernel = n.op("Reshape", features(template), ints(n, 16, 1, 5, 5))
    y = n.op("Relu", n.conv(n.op("Conv", features(x), kernel, group=16), 16, 16, 1, 1))
    return n.done(n.conv(y, 4, 16, 1, 1), n.conv(y, 2, 16, 1, 1))


def fused_encoder() -> Built:
    """BERT as onnxruntime's transformer optimizer writes it, in operators of com.microsoft."""
    n = Net()
    names = ("ids", "segments", "mask")
    ids, segments, mask = (n.input(name, ["N", TOKENS], "int32", high)
                           for name, high in zip(names, (40, 2, 2), strict=True))  # fmt: skip
    mask = n.op("Max", mask, n.const(np.eye(1, TOKENS, dtype=np.int32)))
    tables = [n.const(5 * weight(size, WIDTH)) for size in (40, 12, 2)]

    def op(kind: str, *inputs: str, **attributes: object) -> str | list[str]:
        result: str | list[str] = n.op(kind, *inputs, domain="com.microsoft", **attributes)
        return result

    def scales() -> list[str]:
        return [vector(n, WIDTH, 1.0, WIDTH), vector(n, WIDTH, 0.0, WIDTH)]

    x, lengths = op("EmbedLayerNormalization", ids, segments, *tables, *scales(), mask, outputs=2)
    for _ in range(2):
        w, b = n.const(weight(WIDTH, 3 * WIDTH)), n.const(0.1 * weight(3 * WIDTH))
        y = str(op("Attention", x, w, b, lengths, num_heads=4))
        y = n.op("MatMul", y, n.const(weight(WIDTH, WIDTH)))
        x = str(op("SkipLayerNormalization", y, x, *scales(), n.const(0.1 * weight(WIDTH))))
        y = n.op("MatMul", x, n.const(weight(WIDTH, 64)))
        y = n.op("MatMul", str(op("BiasGelu", y, n.const(0.1 * weight(64)))),
                 n.const(weight(64, WIDTH)))  # fmt: skip
        x = str(op("SkipLayerNormalization", y, x, *scales(), n.const(0.1 * weight(WIDTH))))
    first = n.op("Gather", x, n.const(np.array(0)), axis=1)
    return n.done(n.op("Gemm", first, n.const(weight(WIDTH, 3)), n.const(weight(3))))


def sound_features() -> Built:
    """A log-mel spectrum by STFT in front of separable convolutions."""
    n = Net()
    wave = n.input("wave", ["N", 640])
    window = n.const(np.hanning(64).astype(np.float32))
    parts = n.op("STFT", wave, n.const(np.array(32)), window, n.const(np.array(64)), onesided=1)
    power = n.op("ReduceSum", n.op("Mul", parts, parts), ints(n, 3), keepdims=0)
    mel = n.op("MatMul", power, n.const(3 * np.abs(weight(33, 16))))
    x = n.op("Transpose", n.op("Log", n.op("Add", mel, scalar(n, 1e-3))), perm=[0, 2, 1])
    x = n.op("Relu", n.conv(x, 24, 16, 3, pads=[1, 1]))
    x = n.conv(n.op("Relu", n.conv(x, 24, 24, 3, pads=[1, 1], group=24)), 24, 24, 1)
    return n.done(n.op("Gemm", n.op("Flatten", n.op("GlobalAveragePool", x)),
                       n.const(weight(24, 5))))  # fmt: skip


def pooled_indices() -> Built:
    """Values and positions of the largest in each window, both outputs."""
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", ["N", 3, 16, 16]), 16, 3, 3, 3, pads=[1] * 4))
    y, indices = n.op("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    model, inputs = n.done(n.conv(y, 4, 16, 3, 3, pads=[1] * 4), indices)
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model, inputs


NETWORKS: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        segmentation, scatter_cache, sequence_lengths, sentence_embedding, counted_positions,
        shifted_windows, half_weights, siamese, fused_encoder, sound_features, pooled_indices,
    )
}  # fmt: skip

# As LOOPS of zoo_streams.
NETWORK_LOOPS: Mapping[str, Mapping[int, str]] = {"scatter_cache": {1: "keys", 2: "values"}}
