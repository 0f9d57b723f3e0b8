"""Rewrites that read data, named in a recipe or in the API."""

import numpy as np
import onnx
import pytest
from models import Net

import qtool
from qtool.errors import DataError


def saved(folder):
    net = Net()
    outliers = np.where(np.arange(8) % 4 == 0, 60.0, 1.0)
    x = net.add("LayerNormalization", net.input("x", "N", 5, 8), net.const(outliers), axis=-1)
    net.output(net.add("MatMul", x, net.weight(8, 4), out="y"))
    onnx.save(net.proto(), folder / "net.onnx")
    return qtool.load(folder / "net.onnx")


def test_smooth_is_added_to_the_targets_rewrites(tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 5, 8)).astype(np.float32)
    plan = qtool.quantize(saved(tmp_path), [x], rewrites=["smooth"])
    assert "smooth x1" in plan.notes and "matmul_to_gemm x1" in plan.notes
    assert any(note.startswith("smooth: alpha") for note in plan.notes)


def test_one_sample_is_too_few(tmp_path):
    x = np.zeros((1, 5, 8), np.float32)
    with pytest.raises(DataError, match="at least 2 samples"):
        qtool.quantize(saved(tmp_path), [x], rewrites=["smooth"])
