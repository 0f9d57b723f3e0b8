"""Names of nodes, values, classes and files that a terminal or a file format would act on."""

import os

import numpy as np
import onnx
import pytest
from models import Net
from PIL import Image
from typer.testing import CliRunner

from qtool.cli.main import app

HOSTILE = "<script>alert(1)</script>|`@you`[red]\x1b[31m\u202e</td>\n"
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A network, class folders and images with such names; one of each is no UTF-8."""
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 4, name="conv" + HOSTILE, out="v" + HOSTILE)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", x, name=HOSTILE)))
    w, b = net.weight(3, 4, name="w" + HOSTILE), net.weight(3)
    net.output(net.add("Gemm", x, w, b, transB=1, out="y", name="head" + HOSTILE))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    for part in (b"train", b"test"):
        for label in (b"a\x1b[2J", b"b\xff", b"<b>c|"):
            images = os.path.join(os.fsencode(tmp_path), part, label)
            os.makedirs(images)
            for k in range(3):
                pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
                with open(os.path.join(images, b"%d\xfe\x1b.png" % k), "wb") as file:
                    Image.fromarray(pixels).save(file, "PNG")
    (tmp_path / "r.yaml").write_text(
        "model: m.onnx\ncalibrate: {images: train, preprocess: {mean: 0.5, std: 0.5}}\n"
        "evaluate: {images: test}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> str:
    """What a command prints to stdout and stderr; none of it moves a cursor."""
    ended = CliRunner().invoke(app, line.split())
    assert ended.exit_code == 0, ended.output
    assert [c for c in ended.output if ord(c) < 32 and c != "\n"] == []
    return ended.output


def test_no_name_reaches_a_terminal_or_a_page_as_it_is(folder):
    assert "conv<script>" in run("inspect m.onnx")
    assert "conv<script>" in run("check r.yaml")
    run("ptq --recipe r.yaml --out o --threads 1")
    assert "<script>alert(1)" not in (folder / "o" / "report.html").read_text()
    run("report o")


def test_an_error_prints_no_control_characters(folder):
    model = onnx.load(folder / "m.onnx")
    model.graph.node[1].op_type = "NoSuch\x1b[2J"
    onnx.save(model, folder / "m.onnx")
    ended = CliRunner().invoke(app, ["ptq", "--recipe", "r.yaml", "--out", "o"])
    assert ended.exit_code == 3
    assert "NoSuch\ufffd[2J" in ended.output and "\x1b" not in ended.output
