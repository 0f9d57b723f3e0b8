"""Scales of a fixed form in training: the form holds, and the file is what was trained."""

import numpy as np
import onnx
import pytest
import torch
from models import Net, run

import qtool
from qtool.errors import RecipeError
from qtool.qat.quantizers import QAT_QUANTIZERS
from qtool.qat.quantizers.restricted_scale import RestrictedScale
from qtool.qat.quantizers.trainable import trained_widths
from qtool.quant.scale_formats import as_integers

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 8, 3, name="c0")
    x = net.conv(net.add("Relu", x), 8, 8, 3, name="c1")
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", x)))
    net.output(net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y"))
    path = tmp_path_factory.mktemp("restricted") / "net.onnx"
    onnx.save(net.proto(), path)
    return qtool.load(path)


@pytest.mark.parametrize(
    ("kind", "value", "nearest"),
    [
        ("power_of_two", 0.7, 0.5),
        ("power_of_two", 0.72, 1.0),
        ("double_shift", 0.74, 0.75),
        ("double_shift", 0.6, 0.625),
        ("fixed_point:4", 0.55, 0.5),
    ],
)
def test_known_answers(kind, value, nearest):
    module = RestrictedScale(kind, 10.0, lambda: 2.0)
    tensor = torch.tensor([10 * value / 2], requires_grad=True)
    rounded = module(tensor)
    assert rounded.item() == pytest.approx(10 * nearest / 2)
    rounded.backward()
    assert tensor.grad.item() == 1.0


def trained(model, name, kind, scheme):
    width = max(trained_widths(QAT_QUANTIZERS[name]) & {1, 2, 4})
    bits = {"weights": width, "activations": 4, "scale": kind, "scheme": scheme}
    x = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)
    plan = qtool.quantize(model, [x], bits=bits, ptq=[])
    module = qtool.simulate(model, plan, quantizer=name, batchnorm="folded")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        module.train()(torch.from_numpy(x)).square().mean().backward()
        optimizer.step()
        module.project()
    return module.eval(), x


CASES = [
    (name, kind)
    for name, entry in QAT_QUANTIZERS.items()
    for kind in ("power_of_two", "double_shift", "fixed_point")
    if entry.restricts_scales and (kind == "fixed_point" or name in ("lsq", "sat", "bwn", "kmeans"))
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scales_keep_their_form_and_the_file_is_what_was_trained(model, name, kind, tmp_path):
    module, x = trained(model, name, kind, QAT_QUANTIZERS[name].scheme)
    plan = module.plan()
    weighted = [site for site in plan.quantization.sites.values() if site.weight]
    assert len(weighted) == 3
    for site in weighted:
        w, a = (plan.quantization.params(v) for v in (site.weight, site.inputs[0]))
        y = plan.quantization.params(site.output)
        if kind != "fixed_point":
            as_integers(w.scale, kind)  # raises where the form is another one
            as_integers(a.scale, "power_of_two")
        elif y is not None:
            alpha = w.scale.astype(np.float64) * a.scale / y.scale
            np.testing.assert_allclose(as_integers(alpha, "fixed_point:16").value, alpha, rtol=1e-6)
    qtool.emit(model, plan, tmp_path / "q.onnx")
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    written = run(onnx.load(tmp_path / "q.onnx"), {"x": x})["y"]
    np.testing.assert_allclose(written, expected, atol=1e-3 * np.abs(expected).max())


def test_a_quantizer_with_several_learned_numbers_is_refused(model):
    with pytest.raises(RecipeError, match="TTQWeight follow from several learned numbers"):
        trained(model, "ttq", "power_of_two", "ternary")
