"""Streaming networks through the real command: states fed back, shared inputs, whole calls."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from models import Net
from onnx import TensorProto
from scipy.io import wavfile
from typer.testing import CliRunner

import qtool
from qtool.cli.main import app

RNG = np.random.default_rng(5)
HIDDEN, SIZE = 24, 16
LENGTHS = (30, 20, 25)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cell(kind="LSTM", samples=SIZE):
    """A recurrent network of one step whose states are inputs and outputs, one sample a call."""
    net = Net(opset=17)
    x = net.add("Relu", net.add("Gemm", net.input("x", 1, samples), net.weight(samples, 16)))
    steps = net.add("Unsqueeze", x, net.const(np.array([0])))
    gates = {"LSTM": 4, "GRU": 3}[kind]
    names = ("h", "c")[: 2 if kind == "LSTM" else 1]
    states = [net.input(name, 1, 1, HIDDEN) for name in names]
    weights = (net.weight(1, gates * HIDDEN, 16), net.weight(1, gates * HIDDEN, HIDDEN), "", "")
    out = " ".join(("seq", *(f"{name}_next" for name in names)))
    net.add(kind, steps, *weights, *states, out=out, hidden_size=HIDDEN)
    last = net.add("Squeeze", "h_next", net.const(np.array([0])))
    net.add("Gemm", last, net.weight(HIDDEN, 5), net.weight(5), out="y")
    net.output("y", shape=(1, 5))
    for name in names:
        net.output(f"{name}_next", shape=(1, 1, HIDDEN))
    onnx.save(net.proto(), "cell.onnx")
    return {f"{name}_next": name for name in names}


def streams(folder):
    Path(folder).mkdir()
    for k, length in enumerate(LENGTHS):
        steps = RNG.normal(size=(length, SIZE)).cumsum(axis=0) / 4  # slow: states matter
        np.savez(Path(folder) / f"{k}.npz", x=steps.astype(np.float32))


def ptq(recipe, *options):
    return run("ptq", recipe, *options)


def run(command, recipe, *options):
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    words = [command, "--recipe", "r.yaml", "--out", "run", "--threads", "1", "--json", *options]
    result = CliRunner().invoke(app, words)
    report = json.loads(result.stdout) if result.exit_code in (0, 1) else None
    return result.exit_code, report, result.stderr


def halves(path):
    """Calibrate on every second sample, evaluate on the others."""
    sections = {"calibrate": {"arrays": path}, "evaluate": {"arrays": path, "metric": "sqnr"}}
    return {k: v | {"take": {"every": 2, "offset": n}} for n, (k, v) in enumerate(sections.items())}


def by_hand(path, folder, loop):
    """The first output of a file on every call, its own states fed back."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names, rows = [o.name for o in session.get_outputs()], []
    shapes = {i.name: i.shape for i in session.get_inputs()}
    for file in sorted(Path(folder).glob("*.npz")):
        states = {name: np.zeros(shapes[name], np.float32) for name in loop.values()}
        for x in np.load(file)["x"]:
            outputs = dict(zip(names, session.run(None, {"x": x[None], **states}), strict=True))
            states = {fed: outputs[name] for name, fed in loop.items()}
            rows.append(outputs[names[0]])
    return np.concatenate(rows)


def sqnr(want, got):
    return 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_both_files_are_evaluated_with_their_own_states(kind):
    loop = cell(kind)
    streams("fit")
    streams("test")
    recipe = {
        "model": "cell.onnx",
        "calibrate": {"arrays": "fit", "loop": loop},
        "evaluate": {"arrays": "test", "loop": loop, "metric": "sqnr", "simulate": 40},
    }
    code, report, said = ptq(recipe)
    assert code == 0, said
    accuracy = report["accuracy"]
    assert accuracy["samples"] == sum(LENGTHS) and accuracy["simulated_samples"] == 40
    want, got = (by_hand(path, "test", loop) for path in ("cell.onnx", "run/model.onnx"))
    assert accuracy["quantized"] == pytest.approx(sqnr(want, got), abs=1e-3)
    assert accuracy["quantized"] > 20
    first = np.r_[0:14, 30:43, 50:63]  # the first calls of each stream
    same = sqnr(want[first], got[first])
    assert accuracy["simulated"] == pytest.approx(same, abs=0.5)
    assert report["parity"]["max_lsb"] <= 1 and report["kernels"]["integer"]


def test_calibration_sees_real_states():
    """A grid over the state's path covers what it becomes, not the zeros a stream begins with."""
    net = Net(opset=17)
    x, state = net.input("x", 1, 4), net.input("state", 1, 4)
    net.add("Add", x, net.add("Mul", state, net.const(0.9)), out="state_next")
    net.add("Gemm", "state_next", net.weight(4, 3), net.weight(3), out="y")
    net.output("y", "state_next", shape=None)
    onnx.save(net.proto(), "leaky.onnx")
    np.savez("x.npz", x=np.ones((60, 4), np.float32))
    recipe = {
        "model": "leaky.onnx",
        "calibrate": {"arrays": "x.npz", "loop": {"state_next": "state"}},
    }
    code, _, said = ptq(recipe)
    assert code == 0, said
    plan = json.loads(Path("run/plan.json").read_text())
    grid = plan["grid_of"]["state_next"]
    with np.load("run/plan.npz") as arrays:
        keys = [k for k in arrays.files if grid in k and "scale" in k]
        scale = float(arrays[keys[0]]) if keys else None
    assert scale is not None and 255 * scale == pytest.approx(10, rel=0.1)  # 1 / (1 - 0.9)


def test_states_of_quantized_inputs_and_outputs():
    loop = cell()
    streams("fit")
    streams("test")
    recipe = {
        "model": "cell.onnx",
        "calibrate": {"arrays": "fit", "loop": loop},
        "evaluate": {"arrays": "test", "loop": loop, "metric": "sqnr"},
        "output": {"io": "quantized"},
    }
    code, report, said = ptq(recipe)
    assert code == 0, said
    assert report["accuracy"]["quantized"] > 20


def test_recorded_states_are_kept_between_runs():
    loop = cell()
    streams("fit")
    recipe = {"model": "cell.onnx", "calibrate": {"arrays": "fit", "loop": loop}}
    assert ptq(recipe)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in Path("run/.stages").glob("states-*")}
    assert len(before) == 2 and ptq(recipe, "--overwrite")[0] in (0, 2)
    assert {p: p.stat().st_mtime_ns for p in Path("run/.stages").glob("states-*")} == before


def test_recordings_are_cut_into_the_calls_of_a_stream():
    """The last of `samples` samples are new; before the start there are zeros."""
    loop = cell(samples=32)
    Path("sounds").mkdir()
    signals = []
    for k, length in enumerate((500, 333)):
        signal = (RNG.normal(size=length) * 8000).astype(np.int16)
        wavfile.write(f"sounds/{k}.wav", 16000, signal)
        signals.append(signal.astype(np.float32) / 32768)
    section = {"wav": {"path": "sounds", "samples": 32, "hop": 20}, "loop": loop}
    code, report, said = ptq({"model": "cell.onnx", "calibrate": section, "evaluate": section | {
        "allow_overlap": True, "metric": "sqnr"}})  # fmt: skip
    assert code == 0, said
    assert report["accuracy"]["samples"] == 25 + 17
    Path("calls").mkdir()
    for k, signal in enumerate(signals):
        long = np.concatenate([np.zeros(12), signal, np.zeros(20)]).astype(np.float32)
        calls = [long[s : s + 32] for s in range(0, len(signal), 20)]
        np.savez(f"calls/{k}.npz", x=np.stack(calls))
    want, got = (by_hand(path, "calls", loop) for path in ("cell.onnx", "run/model.onnx"))
    assert report["accuracy"]["quantized"] == pytest.approx(sqnr(want, got), abs=1e-3)


def shared():
    """An encoder layer with a mask for all samples, a rate, and a state [layers, N, hidden]."""
    net = Net(opset=17)
    x, mask = net.input("x", "N", 6, 8), net.input("mask", 1, 6, 6)
    rate = net.input("rate", dtype=TensorProto.INT64)
    scores = net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1]))
    weights = net.add("Softmax", net.add("Add", scores, mask), axis=-1)
    y = net.add("MatMul", net.add("MatMul", weights, x), net.weight(8, 5))
    y = net.add("Mul", y, net.add("Div", net.add("Cast", rate, to=1), net.const(16000.0)))
    h = net.add("ReduceSum", net.input("h", 2, "N", 5), net.const(np.array([0])), keepdims=0)
    net.add("Add", y, net.add("Unsqueeze", h, net.const(np.array([1]))), out="out")
    net.output("out")
    onnx.save(net.proto(), "shared.onnx")


def test_masks_rates_and_states_beside_samples():
    shared()
    mask = np.where(np.tri(6), 0, -1e4).astype(np.float32)[None]
    x, h = RNG.normal(size=(40, 6, 8)), RNG.normal(size=(2, 40, 5))
    np.savez("d.npz", x=x.astype(np.float32), h=h.astype(np.float32), mask=mask)
    model = {"onnx": "shared.onnx", "input": {"rate": {"constant": 8000}}}
    code, report, said = ptq({"model": model, **halves("d.npz")})
    assert code == 0, said
    notes = " ".join(" ".join(stage["notes"]) for stage in report["stages"])
    assert "`h` float32 [2, N, 5] (batch axis 1)" in notes and "one by one" not in notes
    assert "`mask` float32 [1, 6, 6] is one array for all samples" in notes
    assert report["accuracy"]["quantized"] > 20
    declared = {"h": {"shape": [2, "N", 5], "batch_axis": 1}, "mask": {"batch_axis": "none"}}
    model["input"] |= declared
    code, again, said = ptq({"model": model, **halves("d.npz")}, "--fresh")
    assert code == 0, said
    assert again["accuracy"] == report["accuracy"]


def test_a_folder_of_calls_is_fed_as_it_is():
    shared()
    Path("calls").mkdir()
    mask = np.where(np.tri(6), 0, -1e4).astype(np.float32)[None]
    for k in range(24):
        arrays = {"x": RNG.normal(size=(1, 6, 8)), "h": RNG.normal(size=(2, 1, 5)), "mask": mask}
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        np.savez(f"calls/{k:02}.npz", **arrays, rate=(8000, 16000)[k % 2])
    code, report, said = ptq({"model": "shared.onnx", **halves("calls")})
    assert code == 0, said
    assert report["accuracy"]["quantized"] > 20 and report["data"]["calibration"]["count"] == 12


def test_a_scalar_alone_is_fed():
    net = Net(opset=17)
    s = net.add("Unsqueeze", net.input("s"), net.const(np.array([0, 1])))
    net.output(net.add("Gemm", net.add("Gemm", s, net.weight(1, 8)), net.weight(8, 3), out="y"))
    onnx.save(net.proto(), "scalar.onnx")
    np.savez("d.npz", s=np.linspace(-1, 1, 40, dtype=np.float32))
    code, report, said = ptq({"model": "scalar.onnx", **halves("d.npz")})
    assert code == 0, said
    assert report["accuracy"]["quantized"] > 20


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (
            {"h_nxt": "h"},
            "names the output h_nxt, but the model has y, h_next, c_next; did you mean",
        ),
        ({"h_next": "hh"}, "names the input hh, but the model has x, h, c"),
    ],
)
def test_names_in_a_loop_are_checked(loop, words):
    cell()
    streams("fit")
    code, _, said = ptq({"model": "cell.onnx", "calibrate": {"arrays": "fit", "loop": loop}})
    assert code == 2 and "r.yaml:" in said and words in " ".join(said.split())


def test_a_forgotten_state_names_the_loop():
    cell("GRU")
    streams("fit")
    code, _, said = ptq({"model": "cell.onnx", "calibrate": {"arrays": "fit"}})
    assert code == 2 and "loop: {h_next: h}" in said


def test_training_reads_recorded_states():
    loop = cell("GRU")
    streams("fit")
    section = {"arrays": "fit", "loop": loop}
    training = section | {"epochs": 1, "batch": 1, "count": 8, "validation": 0.25}
    recipe = {"model": "cell.onnx", "calibrate": section, "qat": training}
    code, report, said = run("qat", recipe)
    assert code == 0, said
    assert any(stage["name"] == "qat" for stage in report["stages"])


def test_the_python_api_feeds_states_and_shared_inputs(tmp_path):
    loop = cell("GRU")
    streams("fit")
    model = qtool.load("cell.onnx")
    plan = qtool.quantize(model, {"arrays": "fit", "loop": loop}, threads=1)
    assert plan.quantization.grid_of
    shared()
    inputs = {"rate": {"constant": 8000}, "mask": {"batch_axis": "none"}}
    model = qtool.load({"onnx": "shared.onnx", "input": inputs})
    arrays = {"x": (8, 6, 8), "mask": (1, 6, 6), "h": (2, 8, 5)}
    batches = [{n: RNG.normal(size=s).astype(np.float32) for n, s in arrays.items()}] * 2
    plan = qtool.quantize(model, batches, threads=1)
    qtool.emit(model, plan, tmp_path / "q.onnx")
    feeds = batches[0] | {"rate": np.array(8000)}
    want, got = (
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in ("shared.onnx", tmp_path / "q.onnx")
    )
    assert sqnr(want, got) > 20


def test_a_search_compares_on_held_out_calls():
    loop = cell("GRU")
    streams("fit")
    streams("test")
    recipe = {
        "model": "cell.onnx",
        "calibrate": {"arrays": "fit", "loop": loop},
        "evaluate": {"arrays": "test", "loop": loop, "metric": "sqnr", "simulate": 8},
        "bits": {"budget": {"bits": 7.7, "among": [4, 8]}},
        "ptq": [],
    }
    code, report, said = ptq(recipe)
    assert code == 0, said
    assert report["search"]["chosen"]["kl"] > 0
    # The weights of the GRU, which are no layer's, count as well.
    assert report["size"]["weight_bits_mean"] <= 7.7
    recipe["bits"] = {"budget": {"bits": 6, "among": [4, 8]}}
    code, _, said = ptq(recipe)
    assert code == 2 and "the least that each limit alone allows: bits 7." in said
