"""Activations of 1 bit, and popcounts."""

import numpy as np
import onnx
import pytest
import torch
from models import Net, run
from torch_training import train_and_emit

import qtool
from qtool.qat.quantizers.binary.xnor import ApproxSignGradient, popcount_dot
from qtool.qat.quantizers.learned_step import learned_step

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("count", [1, 4, 5, 8, 63, 200])
def test_a_dot_product_of_signs_is_a_popcount(count):
    a, b = RNG.choice([-1, 1], (2, count))
    assert popcount_dot(a, b) == int(a @ b)


def test_known_answer_of_a_popcount():
    assert popcount_dot(np.array([1, -1, 1, 1]), np.array([1, 1, -1, 1])) == 0


def test_the_file_multiplies_as_popcounts_do(tmp_path):
    """y = a s (w t + sum w) / 2 + b, signs w and t = 2 codes - 1, b a multiple of a s."""
    net = Net(opset=21)
    weight, bias = RNG.normal(size=(8, 20)), RNG.normal(size=8)
    x = net.input("x", "N", 20)
    constants = net.const(weight, "w"), net.const(bias, "b")
    net.output(net.add("Gemm", x, *constants, transB=1, out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    samples = RNG.uniform(size=(32, 20)).astype(np.float32)
    bits = {"weights": 1, "activations": 1, "scheme": "binary"}
    plan = qtool.quantize(model, [samples], bits=bits, ptq=[])
    qtool.emit(model, plan, tmp_path / "q.onnx")
    grid, signs = plan.quantization.qparams("x"), np.sign(weight)
    assert grid.spec.bits == 1 and int(grid.zero_point) == 0
    codes = np.where(samples > grid.scale / 2, 1, -1)
    sums = [[popcount_dot(w, t) + w.sum() for w in signs] for t in codes]
    step = np.abs(weight).mean(1) * float(grid.scale)
    expected = step * (np.array(sums) / 2 + np.round(bias / step))
    written = run(onnx.load(tmp_path / "q.onnx"), {"x": samples})["y"]
    np.testing.assert_allclose(written, expected, atol=2e-3 * np.abs(expected).max())


def test_known_gradients_of_the_approximate_sign():
    """v = 2 x / s - 1 is -0.5, 0, 0.5 and 1.2; dx is that of sign(v) times s / 2 times 2 / s."""
    x = torch.tensor([0.5, 1.0, 1.5, 2.2], requires_grad=True)
    scale = torch.tensor([2.0], requires_grad=True)
    y = learned_step(x, scale, (0, 1), ApproxSignGradient())
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 2.0, 2.0]
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 2.0, 1.0, 0.0]))
    # By the chain rule through x / s: codes minus dx * x / s.
    expected = 2 - (0.5 * 1 + 1.0 * 2 + 1.5 * 1) / 2
    assert scale.grad.item() == pytest.approx(expected)


def test_the_approximate_gradient_has_the_area_of_the_step():
    x = torch.linspace(-1, 2, 3001, requires_grad=True)
    learned_step(x, torch.tensor([1.0]), (0, 1), ApproxSignGradient()).sum().backward()
    assert float(x.grad.sum()) / 1000 == pytest.approx(1, abs=1e-3)


def test_a_network_of_1_bit_trains_and_its_file_is_what_was_trained(tmp_path):
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 8, 3, name="c0")
    x = net.conv(net.add("Relu", x), 8, 8, 3, name="c1")
    x = net.conv(net.add("Relu", x), 8, 8, 3, name="c2")
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", x)))
    net.output(net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    x = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)
    ends = {"first": 8, "last": 8}
    bits = {"weights": 1, "activations": 1, "scheme": "binary", "layers": ends}
    plan = qtool.quantize(model, [x], bits=bits, ptq=[])
    target = run(net.proto(), {"x": x})["y"]
    learned = train_and_emit(model, plan, x, target, 30, 0.02, tmp_path / "q.onnx")
    for name in ("c1", "c2"):
        site = learned.quantization.sites[name]
        spec, codes = learned.quantization.spec(site.inputs[0]), learned.quantization.codes
        assert (spec.qmin, spec.qmax) == (0, 1) and set(np.unique(codes[site.weight])) == {-1, 1}
