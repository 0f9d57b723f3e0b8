"""Models with states, single numbers, open sizes and inputs that all samples share.

``LOOPS`` names the outputs of a stream that are inputs of its next call.
"""

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.zoo_models import Built, Net, weight
from benchmarks.zoo_patterns import TOKENS, WIDTH, ints

FEATURES, HIDDEN = 24, 32
WINDOW, HOP, BINS = 64, 32, 33


def _recurrent(net: Net, op: str, x: str, size: int, *states: str, gates: int) -> list[str]:
    """Return the sequence and the next states of an LSTM or GRU; x is [steps, 1, size]."""
    rows = gates * HIDDEN
    weights = [net.const(weight(rows, n)[None]) for n in (size, HIDDEN)]
    bias = net.const(0.1 * weight(1, 2 * rows))
    outputs = net.op(
        op, x, *weights, bias, "", *states, outputs=1 + len(states), hidden_size=HIDDEN
    )
    return list(outputs)


def lstm_stream() -> Built:
    """Frames of features through an LSTM whose two states are inputs and outputs."""
    n = Net()
    x = n.linear(n.input("x", [1, 4, FEATURES]), HIDDEN, FEATURES)
    states = [n.input(name, [1, 1, HIDDEN]) for name in ("h", "c")]
    steps = n.op("Transpose", n.op("Relu", x), perm=[1, 0, 2])
    y, h, c = _recurrent(n, "LSTM", steps, HIDDEN, *states, gates=4)
    return n.done(n.linear(n.op("Squeeze", y, ints(n, 1)), 6, HIDDEN), h, c)


def gru_stream() -> Built:
    """Two layers of GRU whose states lie in one array [2, 1, hidden]."""
    n = Net()
    x = n.linear(n.input("x", [1, 4, FEATURES]), HIDDEN, FEATURES)
    parts = n.op("Split", n.input("state", [2, 1, HIDDEN]), outputs=2, axis=0)
    y = n.op("Transpose", n.op("Relu", x), perm=[1, 0, 2])
    after = []
    for part in parts:
        y, h = _recurrent(n, "GRU", y, HIDDEN, part, gates=3)
        y = n.op("Squeeze", y, ints(n, 1))
        after.append(h)
    state = n.op("Concat", *after, axis=0)
    return n.done(n.linear(n.op("Squeeze", y, ints(n, 1)), 6, HIDDEN), state)


def convolution_stream() -> Built:
    """A causal convolution that keeps the last frames of its input in a cache."""
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", [1, FEATURES, 8]), HIDDEN, FEATURES, 1))
    joined = n.op("Concat", n.input("cache", [1, HIDDEN, 4]), x, axis=2)
    ends = [ints(n, value) for value in (-4, 2**31 - 1, 2)]
    y = n.op("Relu", n.conv(joined, HIDDEN, HIDDEN, 3, dilations=[2]))
    return n.done(n.conv(y, 6, HIDDEN, 1), n.op("Slice", joined, *ends))


def spectrum_stream() -> Built:
    """A voice detector: Fourier basis, magnitudes, a convolution and an LSTM."""
    n = Net()
    wave = n.op("Unsqueeze", n.input("wave", [1, 160]), ints(n, 1))
    n.inputs["wave"] = ([1, 160], "sound", 0)
    angles = 2 * np.pi * np.arange(BINS)[:, None] * np.arange(WINDOW) / WINDOW
    basis = np.concatenate([np.cos(angles), np.sin(angles)]) * np.hanning(WINDOW)
    parts = n.op("Split", n.op("Conv", wave, n.const(basis.astype(np.float32)[:, None]),
                               strides=[HOP]), outputs=2, axis=1)  # fmt: skip
    power = n.op("Add", *(n.op("Pow", part, n.const(np.float32(2))) for part in parts))
    y = n.op("Relu", n.conv(n.op("Sqrt", power), HIDDEN, BINS, 1))
    y = n.op("Relu", n.conv(y, HIDDEN, HIDDEN, 3))
    steps = n.op("Transpose", y, perm=[2, 0, 1])
    h, c = (n.input(name, [1, 1, HIDDEN]) for name in ("h", "c"))
    y, h, c = _recurrent(n, "LSTM", steps, HIDDEN, h, c, gates=4)
    last = n.op("Squeeze", n.op("Gather", y, ints(n, -1), axis=0), ints(n, 0, 1))
    return n.done(n.op("Sigmoid", n.linear(last, 1, HIDDEN)), h, c)


def scalar_inputs() -> Built:
    """A rate and a factor of rank 0; the rate chooses one of two filters."""
    n = Net()
    x = n.input("x", ["N", 8, 32])
    rate, factor = n.input("rate", [], "int64", 2), n.input("factor", [])
    y = n.op("Relu", n.conv(n.op("Mul", x, factor), 16, 8, 3, pads=[1, 1]))
    low, high = (n.conv(y, 16, 16, 3, pads=[1, 1]) for _ in range(2))
    y = n.op("Where", n.op("Cast", rate, to=9), high, low)
    return n.done(n.conv(n.op("Relu", y), 4, 16, 1))


def minus_one_shapes() -> Built:
    """Sizes written as -1, as PaddlePaddle's exporter does."""
    n = Net()
    x = n.op("Relu", n.conv(n.input("x", [-1, 3, -1, -1]), 8, 3, 3, 3, pads=[1] * 4))
    y = n.op("GlobalAveragePool", n.op("Relu", n.conv(x, 16, 8, 3, 3, pads=[1] * 4)))
    y = n.op("Reshape", y, ints(n, 0, 16))
    return n.done(n.op("Gemm", y, n.const(weight(16, 4)), n.const(weight(4))), shapes=[[-1, 4]])


def shared_mask() -> Built:
    """Attention with one mask of sentinels [1, tokens, tokens] for all samples."""
    n = Net()
    x = n.linear(n.input("x", ["N", TOKENS, WIDTH]), WIDTH, WIDTH)
    allowed = n.op("Cast", n.input("mask", [1, TOKENS, TOKENS], "int64"), to=1)
    masked = n.op("Mul", n.op("Sub", n.const(np.float32(1)), allowed), n.const(np.float32(-1e4)))
    q, k, v = (n.linear(x, WIDTH, WIDTH) for _ in range(3))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1]))
    scores = n.op("Mul", scores, n.const(np.float32(WIDTH**-0.5)))
    y = n.op("MatMul", n.op("Softmax", n.op("Add", scores, masked), axis=-1), v)
    return n.done(n.linear(n.op("Add", x, y), 6, WIDTH))


STREAMS: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        lstm_stream, gru_stream, convolution_stream, spectrum_stream, scalar_inputs,
        minus_one_shapes, shared_mask,
    )
}  # fmt: skip

# Model -> positions of the outputs that are fed back -> the input that reads each.
LOOPS: Mapping[str, Mapping[int, str]] = {
    "lstm_stream": {1: "h", 2: "c"},
    "gru_stream": {1: "state"},
    "convolution_stream": {1: "cache"},
    "spectrum_stream": {1: "h", 2: "c"},
}
