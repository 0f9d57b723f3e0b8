"""Models whose weights stay in their file: the same results, in memory that has a bound."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from qtool import files
from qtool.cli.main import app

TOKENS, SIDE, CLASSES, COUNT = 4, 16, 10, 16


class Drawn:
    """A graph being written whose weights are drawn one at a time, when they are written."""

    def __init__(self, kind: ir.DataType) -> None:
        self.kind = kind
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, *shape: int, scale: float) -> ir.Value:
        seed = len(self.weights)
        name = f"w{seed}"

        def draw() -> ir.Tensor:
            array = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
            array *= np.float32(scale)
            return ir.Tensor(array.astype(self.kind.numpy(), copy=False), name=name)

        lazy = ir.LazyTensor(draw, dtype=self.kind, shape=ir.Shape(shape), name=name)
        kind = ir.TensorType(self.kind)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=lazy)
        self.weights.append(value)
        return value

    def add(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(ir.node(op, list(inputs), attributes=attributes, name=name))
        self.nodes[-1].outputs[0].name = f"{name}_out"
        return self.nodes[-1].outputs[0]


FLOAT = ir.DataType.FLOAT


def write_model(
    path: Path, width: int, hidden: int, words: int, pairs: int, kind: ir.DataType = FLOAT
) -> int:
    """An embedding, two convolutions, and pairs of large products; returns the bytes of weights."""
    net = Drawn(kind)
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["N", TOKENS]))
    shape = ir.Shape(["N", 3, SIDE, SIDE])
    image = ir.Value(name="image", type=ir.TensorType(kind), shape=shape)
    axis = ir.Value(name="axis", const_value=ir.tensor(np.array([1]), name="axis"))
    seen = image
    for c_in, c_out in ((3, 16), (16, 32)):
        kernel = net.weight(c_out, c_in, 3, 3, scale=(9 * c_in) ** -0.5)
        seen = net.add("Relu", net.add("Conv", seen, kernel, pads=[1, 1, 1, 1]))
    seen = net.add("Flatten", net.add("GlobalAveragePool", seen))
    seen = net.add("Gemm", seen, net.weight(width, 32, scale=0.2), transB=1)
    x = net.add("Gather", net.weight(words, width, scale=1.0), ids)
    x = net.add("Add", x, net.add("Unsqueeze", seen, axis))
    for _ in range(pairs):
        x = net.add("Relu", net.add("MatMul", x, net.weight(width, hidden, scale=width**-0.5)))
        x = net.add("MatMul", x, net.weight(hidden, width, scale=(2 / hidden) ** 0.5))
    x = net.add("ReduceMean", x, axis, keepdims=0)
    y = net.add("Gemm", x, net.weight(CLASSES, width, scale=width**-0.5), transB=1)
    y.type, y.shape = ir.TensorType(kind), ir.Shape(["N", CLASSES])
    # An old opset: raising it must not drag the weights through protobuf.
    graph = ir.Graph(
        [ids, image],
        [y],
        nodes=net.nodes,
        initializers=[*net.weights, axis],
        opset_imports={"": 18},
        name="big",
    )
    (path.parent / "data").mkdir()
    ir.save(ir.Model(graph, ir_version=9), path, external_data="data/weights.bin")
    rng = np.random.default_rng(0)
    feeds = {
        "ids": rng.integers(0, words, (COUNT, TOKENS)),
        "image": rng.standard_normal((COUNT, 3, SIDE, SIDE)).astype(kind.numpy()),
    }
    np.savez(path.parent / "data.npz", **feeds)
    recipe = {"model": path.name, "calibrate": {"arrays": "data.npz"}}
    (path.parent / "r.yaml").write_text(yaml.safe_dump(recipe))
    return (path.parent / "data/weights.bin").stat().st_size


def ptq(out: str) -> dict:
    result = CliRunner().invoke(app, ["ptq", "--recipe", "r.yaml", "--out", out, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def outputs(path: Path) -> np.ndarray:
    with np.load("data.npz") as archive:
        feeds = {name: archive[name] for name in archive.files}
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.fixture(params=[FLOAT, ir.DataType.FLOAT16])
def small(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.onnx", 64, hidden=256, words=300, pairs=2, kind=request.param)
    return tmp_path


def test_weights_that_stay_in_their_file_give_the_same_results(small, monkeypatch):
    ordinary = ptq("one")
    for limit in ("EXTERNAL_BYTES", "MAPPED_BYTES"):
        monkeypatch.setattr(files, limit, 20_000)
    mapped = ptq("two")
    assert [p.name for p in (small / "one").glob("model*")] == ["model.onnx"]
    assert {p.name for p in (small / "two").glob("model*")} == {"model.onnx", "model.onnx.data"}
    assert (small / "one/plan.npz").read_bytes() == (small / "two/plan.npz").read_bytes()
    np.testing.assert_array_equal(outputs(small / "one/model.onnx"), outputs("two/model.onnx"))
    for key in ("parity", "kernels", "layers", "accuracy", "model"):
        assert ordinary[key] == mapped[key], key
    stages = [{s["name"]: s["notes"] for s in r["stages"]} for r in (ordinary, mapped)]
    assert [any("in turn" in note for note in s["verify"]) for s in stages] == [False, True]
    assert mapped["size"]["quantized_bytes"] == sum(
        (small / "two" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
    )


def test_the_weights_of_an_earlier_larger_model_do_not_stay(small, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(files, "EXTERNAL_BYTES", 20_000)
        ptq("run")
    ptq("run")
    assert [p.name for p in (small / "run").glob("model*")] == ["model.onnx"]
    assert outputs(small / "run/model.onnx").shape == (COUNT, CLASSES)


def resident(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process and its children: all of them, and those of no file."""
    total = own = 0
    for each in [process, *process.children(recursive=True)]:
        lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
        sizes = {k: int(v.split()[0]) << 10 for k, v in (x.split(":") for x in lines if "kB" in x)}
        total += sizes.get("VmRSS", 0)
        own += sizes.get("RssAnon", 0)
    return total, own


class Watch:
    """Peak memory and CPU seconds of a command with all its processes."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.peak = self.own = 0
        self.seconds = 0.0
        with (folder / "said.txt").open("w") as said:
            process = psutil.Popen(command, cwd=folder, stdout=said, stderr=said)
            try:
                while process.poll() is None:
                    self._look(process)
                    time.sleep(0.05)
            finally:
                if process.poll() is None:
                    process.kill()
        assert process.returncode == 0, (folder / "said.txt").read_text()

    def _look(self, process: psutil.Popen) -> None:
        try:
            total, anonymous = resident(process)
            times = [process.cpu_times(), *(c.cpu_times() for c in process.children())]
        except (OSError, psutil.Error):  # a process ended in between
            return
        self.peak, self.own = max(self.peak, total), max(self.own, anonymous)
        # A process that has ended counts in its parent's times.
        used = sum(t.user + t.system + t.children_user + t.children_system for t in times)
        self.seconds = max(self.seconds, used)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_estimate_of_400_million_weights(tmp_path, monkeypatch):
    """Time, memory and size of the file within 2 x, and progress while weights are rounded."""
    if shutil.disk_usage(tmp_path).free < 6e9 or psutil.virtual_memory().available < 8e9:
        pytest.skip("needs 6 GB of disk and 8 GB of memory")
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.onnx", width=2048, hidden=8192, words=30_000, pairs=10)
    recipe = yaml.safe_load((tmp_path / "r.yaml").read_text())
    recipe["ptq"] = []
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    try:
        result = CliRunner().invoke(app, ["check", "r.yaml", "--json", "--threads", "1"])
        assert result.exit_code == 0, result.output
        estimate = json.loads(result.stdout)["estimate"]
        words = ["ptq", "--recipe", "r.yaml", "--out", "run", "--threads", "1"]
        watch = Watch([sys.executable, "-m", "qtool", *words], tmp_path)
        report = json.loads((tmp_path / "run/report.json").read_text())
        size = report["size"]["quantized_bytes"]
        print(estimate, watch.seconds, watch.peak, size)
        print({s["name"]: s["seconds"] for s in report["stages"]})
        for expected, measured in (
            (estimate["seconds"], watch.seconds),
            (estimate["memory_bytes"], watch.peak),
            (estimate["file_bytes"], size),
        ):
            assert measured / 2 <= expected <= measured * 2
        assert "weights: " in (tmp_path / "said.txt").read_text()
    finally:
        shutil.rmtree(tmp_path)
        os.makedirs(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_of_two_and_a_half_gigabytes(tmp_path):
    """Peak memory of all processes together stays below 2.5 times the file."""
    if shutil.disk_usage(tmp_path).free < 10e9 or psutil.virtual_memory().available < 8e9:
        pytest.skip("needs 10 GB of disk and 8 GB of memory")
    try:
        size = write_model(tmp_path / "m.onnx", width=2048, hidden=16384, words=108_600, pairs=6)
        assert size > 2.5e9
        command = [sys.executable, "-m", "qtool", "ptq", "--recipe", "r.yaml", "--out", "run"]
        watch = Watch(command, tmp_path)
        peak, own = watch.peak, watch.own
        report = json.loads((tmp_path / "run/report.json").read_text())
        print(f"file {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {own / 1e6:.0f} MB of no file")
        print({s["name"]: (s["seconds"], s["peak_rss_mb"]) for s in report["stages"]})
        assert peak <= 2.5 * size
        assert report["passed"] is not False and report["size"]["compression"] > 3.9
    finally:
        shutil.rmtree(tmp_path)
        os.makedirs(tmp_path)
