"""Fourier bases and the layers that read their magnitudes stay float, up to a logarithm."""

import numpy as np
import pytest
from models import Net, cpu

from qtool.annotation.annotator import annotate
from qtool.quant.bit_widths import Bits

SAMPLES, WINDOW, HOP, BINS = 96, 16, 8, 9
FRAMES = (SAMPLES - WINDOW) // HOP + 1
RNG = np.random.default_rng(5)

MEL = np.maximum(RNG.normal(0, 1, (6, BINS, 1)), 0).astype(np.float32)
LEARNED = RNG.normal(0, 1, (6, BINS, 1)).astype(np.float32)


def basis() -> np.ndarray:
    angles = 2 * np.pi * np.arange(BINS)[:, None] * np.arange(WINDOW) / WINDOW
    return np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)[:, None]


def halves(net: Net, x: str) -> str:
    """Return the powers of one convolution, whose channels are cut into two parts."""
    y = net.add("Conv", x, net.const(basis()), name="basis", strides=[HOP])
    ends = [(0, BINS), (BINS, 2 * BINS)]
    parts = [net.add("Slice", y, *(net.const(np.array([v])) for v in (*part, 1))) for part in ends]
    return net.add("Add", *(net.add("Pow", part, net.const(2.0)) for part in parts))


def two_layers(net: Net, x: str) -> str:
    kernels = [net.const(part) for part in np.split(basis(), 2)]
    names = ("basis", "imaginary")
    parts = [
        net.add("Conv", x, kernel, name=name, strides=[HOP])
        for kernel, name in zip(kernels, names, strict=True)
    ]
    return net.add("Add", *(net.add("Mul", part, part) for part in parts))


def length(net: Net, x: str) -> str:
    y = net.add("Conv", x, net.const(basis()), name="basis", strides=[HOP])
    y = net.add("Reshape", y, net.const(np.array([0, 2, BINS, FRAMES])))
    return net.add("ReduceL2", y, axes=[1], keepdims=0)


def transform(net: Net, x: str) -> str:
    frames = net.add("Reshape", x, net.const(np.array([-1, SAMPLES, 1])))
    window = net.const(np.ones(WINDOW, np.float32))
    y = net.add("STFT", frames, net.const(np.array(HOP)), window, onesided=1)
    square = net.add("Mul", y, y)
    power = net.add("ReduceSum", square, net.const(np.array([3])), keepdims=0)
    return net.add("Transpose", power, perm=[0, 2, 1])


def sound(power=halves, ahead=(), behind=("Sqrt",)) -> dict[str, str]:
    """Return the reasons of the float ops of a network that reads a wave of 96 samples.

    Args:
        power: computes the powers.
        ahead, behind: what stands around them: ops, with a second operand or weights of a layer
            that is called "filters"; the last layer is called "last".
    """
    net = Net()
    x = net.input("x", "N", 1, SAMPLES)

    def through(x: str, steps: tuple, size: int) -> tuple[str, int]:
        for step in steps:
            if isinstance(step, np.ndarray):
                x, size = net.add("Conv", x, net.const(step), name="filters"), len(step)
            else:
                op, *operands = step if isinstance(step, tuple) else (step,)
                x = net.add(op, x, *(net.const(v) for v in operands))
        return x, size

    x, _ = through(x, ahead, 1)
    x, size = through(power(net, x), behind, BINS)
    net.output(net.add("Conv", x, net.weight(4, size, 1), name="last", out="y"))
    return dict(annotate(net.model(), cpu(), Bits()).float_nodes)


@pytest.mark.parametrize("power", [halves, two_layers, length])
def test_a_basis_and_the_layer_behind_it_stay_float(power):
    reasons = sound(power)
    assert "Fourier basis" in reasons["basis"] and "without a logarithm" in reasons["last"]
    assert power is not two_layers or "Fourier basis" in reasons["imaginary"]


def test_the_transform_of_onnx_is_followed():
    assert "without a logarithm" in sound(transform)["last"]


@pytest.mark.parametrize("behind", [("Sqrt", "Log"), (("Pow", 0.3),), (("Add", 1e-6), "Log")])
def test_a_layer_behind_a_logarithm_is_quantized(behind):
    reasons = sound(behind=behind)
    assert "basis" in reasons and "last" not in reasons


def test_filters_without_negative_weights_pass_a_spectrum_on():
    reasons = sound(behind=(MEL, ("Clip", 1e-5), "Log"))
    assert "without a logarithm" in reasons["filters"] and "last" not in reasons
    assert "last" in sound(behind=("Sqrt", MEL))


def test_a_learned_layer_ends_the_spectrum():
    reasons = sound(behind=("Sqrt", LEARNED, "Relu"))
    assert "filters" in reasons and "last" not in reasons


def test_scaling_and_framing_of_the_wave_may_stand_in_front():
    assert "basis" in sound(ahead=(("Mul", 32768.0), ("Pad", np.array([0, 0, 8, 0, 0, 8]))))


def test_squares_behind_another_layer_are_no_spectrum():
    reasons = sound(ahead=(RNG.normal(0, 1, (1, 1, 1)).astype(np.float32),))
    assert "basis" not in reasons and "last" not in reasons
    assert "basis" not in sound(ahead=("Tanh",))


def test_other_sums_of_squares_are_no_spectrum():
    def cubes(net: Net, x: str) -> str:
        y = net.add("Conv", x, net.const(basis()[:BINS]), name="basis", strides=[HOP])
        return net.add("Add", *(net.add("Pow", y, net.const(3.0)) for _ in range(2)))

    def of_bins(net: Net, x: str) -> str:
        y = net.add("Conv", x, net.const(basis()[:BINS]), name="basis", strides=[HOP])
        total = net.add("ReduceSumSquare", y, axes=[1], keepdims=1)
        return net.add("Expand", total, net.const(np.array([1, BINS, FRAMES])))

    assert "basis" not in sound(cubes) and "basis" not in sound(of_bins)
