"""QONNX files of networks whose first convolution changed its form are evaluated correctly."""

import json

import numpy as np
import onnx
import pytest
import yaml
from command import qtool
from models import Net


@pytest.mark.parametrize(
    ("kernel", "weights"),
    [(3, 4), (5, 8), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((3, 8), (3, 1), (5, 1)))],
)
def test_the_first_convolution_is_compared_with_its_own_inputs(weights, kernel, tmp_path):
    net = Net(opset=17)
    x = net.input("x", "N", 3, 12, 12)
    pads = [kernel // 2] * 4
    x = net.add("Relu", net.conv(x, 3, 8, kernel, strides=[2, 2], pads=pads))
    x = net.add("Relu", net.conv(x, 8, 8))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(4, 8), net.weight(4), transB=1, out="y"))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(40, 3, 12, 12)).astype(np.float32))
    recipe = {
        "model": "net.onnx",
        "calibrate": {"arrays": "a.npz"},
        "evaluate": {"arrays": "b.npz"},
        "bits": {"weights": weights},
        "output": {"format": "qonnx"},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = qtool("ptq", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "o", "--json")
    assert done.returncode == 0, done.stderr
    parity = json.loads(done.stdout)["parity"]
    # Floats before rounding: a tie may fall either way, nothing else differs.
    assert parity["max_lsb"] <= 1 and parity["share_off"] < 1e-3
