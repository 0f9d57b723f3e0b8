"""The child process of the verification: tasks, progress, failures, imports."""

import errno
import io
import json
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest
from models import Net, bind, cpu, feeds_for, frozen_plan, rewritten, run

from qtool import errors
from qtool.data import DataSection, InputSpec
from qtool.emitters import emit_qdq, save_model
from qtool.errors import DataError, OutOfMemoryError, StorageError, UnsupportedError
from qtool.verification import ort_process, ort_worker
from qtool.verification.captured_outputs import capturable_values, with_outputs
from qtool.verification.latency.timing_script import ROUNDS
from qtool.verification.ort_process import FAILURES, run_tasks
from qtool.verification.tasks import (
    KINDS,
    Capture,
    CaptureResult,
    CompareOutputs,
    Evaluate,
    EvaluateResult,
    Optimize,
    Profile,
    Samples,
    Slice,
    Task,
    TimePair,
    read_tasks,
    write_feeds,
    write_tasks,
)

COUNT = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Write a float and a quantized file, a copy with captured outputs, and data."""
    folder = tmp_path_factory.mktemp("verify")
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.output(net.add("Gemm", x, net.weight(5, 4), net.weight(5), transB=1, out="y"))
    model = net.load(folder)
    onnx.save(net.proto(), folder / "float.onnx")
    bind(model, feeds_for(model))
    rewritten(model)
    plan = frozen_plan(model)
    emitted = emit_qdq(model, plan, cpu())
    save_model(emitted, folder / "quantized.onnx")
    names = list(capturable_values(emitted, plan))
    save_model(with_outputs(emitted, names), folder / "captured.onnx")
    (folder / "names.json").write_text(json.dumps(names))
    images = np.random.default_rng(0).normal(0, 1, (COUNT, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=images, y=np.arange(COUNT) % 5)
    np.savez(folder / "feeds.npz", x=images[:1])
    return folder


def samples(folder, path="data.npz", shape=("N", 3, 8, 8), indices=range(COUNT)) -> Samples:
    section = DataSection.model_validate({"arrays": {"path": str(folder / path)}})
    return Samples.of(section, {"x": InputSpec("x", shape, "float32")}, tuple(indices), False)


def optimize(folder, tmp_path, file="quantized.onnx") -> Optimize:
    return Optimize(str(folder / file), str(tmp_path / "optimized.onnx"))


def evaluate(folder, tmp_path, model=None, **rest) -> Evaluate:
    model = str(model or folder / "float.onnx")
    return Evaluate("float", model, str(tmp_path / "out.npy"), samples(folder, **rest))


def capture(folder, tmp_path, rows=1, **rest) -> Capture:
    names = tuple(json.loads((folder / "names.json").read_text()))
    file = str(folder / "captured.onnx")
    return Capture(file, names, str(tmp_path), samples(folder, **rest), rows)


def compare(folder) -> CompareOutputs:
    files = (str(folder / "float.onnx"), str(folder / "quantized.onnx"))
    return CompareOutputs(*files, (Slice("y"), Slice("y", 1, 0, 2, "v")), samples(folder))


def latency(folder, big=False) -> TimePair:
    files = (str(folder / "float.onnx"), str(folder / "quantized.onnx"))
    return TimePair(*files, str(folder / "feeds.npz"), big=big)


@pytest.mark.parametrize("big", [False, True])
def test_big_files_are_timed_with_one_session_alive(big, place, monkeypatch):
    alive: weakref.WeakSet = weakref.WeakSet()
    sessions, loaded, messages = [], [], []

    class Session:
        def get_inputs(self):
            return []

        def get_modelmeta(self):
            return SimpleNamespace(custom_metadata_map={})

        def run(self, outputs, feeds):
            sessions.append(len(alive))
            return []

    def session(path, threads):
        made = Session()
        alive.add(made)
        loaded.append(Path(path).name)
        return made

    monkeypatch.setattr(ort_worker, "_session", session)
    monkeypatch.setattr(ort_worker, "_send", lambda **message: messages.append(message["progress"]))
    monkeypatch.setattr("sys.stdin", io.StringIO("quiet\n"))
    result = ort_worker.perform(latency(place, big))
    assert max(sessions) == (1 if big else 2)
    both = ["float.onnx", "quantized.onnx"]
    assert loaded == (both * ort_worker.BIG_ROUNDS if big else both)
    assert [done for _, done, _ in messages] == list(range(1, messages[0][2] + 1))
    assert result.runs * 2 + 2 + ort_worker.WARM_UP * len(loaded) == len(sessions)


def test_all_tasks_in_one_child(place, tmp_path):
    seen: list[tuple] = []
    order: list[str] = []
    load, captured = optimize(place, tmp_path), capture(place, tmp_path, indices=[4, 2])
    score, time = evaluate(place, tmp_path), latency(place)
    results = run_tasks(
        (load, captured, score, time),
        tmp_path,
        lambda *words: seen.append(words),
        lambda: order.append("meanwhile"),
    )
    assert order == ["meanwhile"]
    assert results.peak_rss_mb > 20
    assert 0 < results[load].load_seconds < 30
    assert "QLinearConv" in {n.op_type for n in ir.load(tmp_path / "optimized.onnx").graph}
    assert results[captured] == CaptureResult(2) and results[score] == EvaluateResult(COUNT)
    timed = results[time]
    assert timed.speedup == pytest.approx(timed.float_ms / timed.quantized_ms)
    assert (timed.batch, timed.threads) == (1, 1)
    assert timed.runs % ROUNDS == 0 and timed.runs >= ROUNDS
    stages = list(dict.fromkeys(words[0] for words in seen))
    assert stages == ["parity capture", "evaluate float", "latency"]
    assert ("evaluate float", COUNT, COUNT) in seen and ("latency", ROUNDS, ROUNDS) in seen


def test_tasks_are_written_and_read_back(place, tmp_path):
    tasks = (
        optimize(place, tmp_path),
        capture(place, tmp_path, rows=3, indices=[4, 2]),
        evaluate(place, tmp_path),
        compare(place),
        latency(place, big=True),
        Profile(str(place / "quantized.onnx"), str(place / "feeds.npz"), str(tmp_path)),
    )
    assert {type(task) for task in tasks} == set(KINDS.values())
    write_tasks(tasks, tmp_path / "tasks.json")
    assert read_tasks(tmp_path / "tasks.json") == tasks


def test_outputs_are_those_of_the_file(place, tmp_path):
    run_tasks((evaluate(place, tmp_path, indices=[3, 0, 7]),), tmp_path)
    with np.load(place / "data.npz") as archive:
        images = archive["x"][[3, 0, 7]]
    want = run(onnx.load(place / "float.onnx"), {"x": images})["y"]
    # Batches of another size sum in another order.
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, rtol=1e-5, atol=1e-6)


def test_captures_hold_inputs_and_every_name(place, tmp_path):
    run_tasks((capture(place, tmp_path, indices=[5, 6]),), tmp_path)
    names = json.loads((place / "names.json").read_text())
    with np.load(place / "data.npz") as archive, np.load(tmp_path / "1.npz") as saved:
        assert set(saved.files) == {"i:x", *(f"o{k}" for k in range(len(names)))}
        assert np.array_equal(saved["i:x"], archive["x"][6:7])
        assert all(saved[f"o{k}"].dtype == np.uint8 for k in range(len(names) - 1))


def fixed_batch(folder, tmp_path) -> str:
    model = onnx.load(folder / "float.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    return str(tmp_path / "fixed.onnx")


def test_a_fixed_batch_is_padded_and_trimmed(place, tmp_path):
    run_tasks((evaluate(place, tmp_path),), tmp_path)
    free = np.load(tmp_path / "out.npy").copy()
    task = evaluate(place, tmp_path, fixed_batch(place, tmp_path), shape=(4, 3, 8, 8))
    assert run_tasks((task,), tmp_path)[task].samples == COUNT  # 4 + 4 + 3
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), free, rtol=1e-5, atol=1e-6)


def test_a_model_that_does_not_load_is_unsupported(place, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    task = optimize(tmp_path, tmp_path, "bad.onnx")
    with pytest.raises(UnsupportedError) as error:
        run_tasks((task,), tmp_path)
    assert str(error.value).startswith(f"ONNX Runtime cannot load {tmp_path / 'bad.onnx'}: ")


def test_a_model_that_does_not_run_is_unsupported(place, tmp_path):
    """Run a file with a fixed batch of 4 on batches of 11."""
    task = evaluate(place, tmp_path, fixed_batch(place, tmp_path))
    with pytest.raises(
        UnsupportedError, match=r"cannot run .*fixed\.onnx on inputs \{'x': \[11, 3"
    ):
        run_tasks((task,), tmp_path)


def test_an_output_without_a_batch_axis_is_unsupported(place, tmp_path):
    net = Net(opset=21)
    net.output(net.add("Flatten", net.input("x", "N", 3, 8, 8), axis=0, out="y"))
    onnx.save(net.proto(), tmp_path / "flat.onnx")
    task = evaluate(place, tmp_path, tmp_path / "flat.onnx")
    with pytest.raises(UnsupportedError, match="the batch must be its first axis"):
        run_tasks((task,), tmp_path)


def test_a_data_error_passes_through(place, tmp_path):
    with pytest.raises(DataError) as error:
        run_tasks((evaluate(place, tmp_path, path="missing.npz"),), tmp_path)
    assert "missing.npz" in str(error.value)
    assert not isinstance(error.value, UnsupportedError)


def test_every_error_a_child_can_raise_has_a_class():
    kinds = set(errors.QtoolError.__subclasses__())
    assert set(FAILURES.values()) == kinds
    assert all(FAILURES[kind.__name__] is kind for kind in kinds)


def test_an_error_fails_the_tasks_before_it_too(place, tmp_path):
    tasks = (evaluate(place, tmp_path), evaluate(place, tmp_path, path="missing.npz"))
    with pytest.raises(DataError):
        run_tasks(tasks, tmp_path)


@dataclass(frozen=True)
class UnknownTask(Task):
    """A task that the child does not define."""


def test_a_failing_child_reports_its_stderr(place, tmp_path):
    with pytest.raises(RuntimeError) as error:
        run_tasks((optimize(place, tmp_path), UnknownTask()), tmp_path)
    # The child reads all tasks before it starts the first.
    assert "the task Optimize of the verifying process ended with 1:" in str(error.value)
    assert "KeyError: 'UnknownTask'" in str(error.value)


def test_a_killed_child_is_followed_by_one_with_smaller_batches(place, tmp_path):
    def kill() -> None:
        for child in psutil.Process().children():
            if "qtool.verification.ort_worker" in child.cmdline():
                child.kill()

    task, progress = evaluate(place, tmp_path), []
    results = run_tasks((latency(place), task), tmp_path, lambda *seen: progress.append(seen), kill)
    assert results[task].samples == COUNT
    batches = [done for stage, done, *_ in progress if stage == "evaluate float"]
    assert batches == [5, 10, 11]  # 11 in one batch, halved
    assert [seen[3] for seen in progress if len(seen) == 4] == [
        "too little memory: once more, in smaller batches"
    ]


@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        (
            "kill -9 $$",
            OutOfMemoryError,
            "of the verifying process was killed: too little",
        ),
        ("kill -11 $$", UnsupportedError, r"ONNX Runtime crashed \(SIGSEGV\) during the task"),
    ],
)
def test_a_child_that_dies_again_is_said_in_a_sentence(
    end, kind, words, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(ort_process, "COMMAND", ("sh", "-c", end))
    with pytest.raises(kind, match=words):
        run_tasks((evaluate(place, tmp_path),), tmp_path)


def test_an_allocation_that_fails_is_no_unsupported_model(place, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ort_worker, "perform", fail)
    write_tasks((evaluate(place, tmp_path),), tmp_path / "tasks.json")
    ort_worker.main(str(tmp_path / "tasks.json"))
    message = json.loads(capsys.readouterr().out)
    assert message["error"] == "OutOfMemoryError" and "too little memory" in message["text"]


def test_the_child_is_killed_when_the_parent_fails(place, tmp_path):
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks((latency(place),), tmp_path, meanwhile=fail)
    left = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    assert not any("qtool.verification.ort_worker" in " ".join(p.cmdline()) for p in left)


def loaded(jobs, before: str = "") -> set[str]:
    """Return the large packages that the child has imported after its tasks."""
    packages = {"torch", "onnx", "onnx_ir", "pydantic", "onnxruntime", "numpy", "typer", "rich"}
    code = (
        f"import sys\n{before}\nfrom qtool.verification.ort_worker import main\n"
        f"main({str(jobs)!r})\n"
        f"print('LOADED', *(set(sys.modules) & {packages}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="quiet\n", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_the_child_loads_neither_torch_nor_onnx(place, tmp_path):
    jobs = tmp_path / "jobs.json"
    write_tasks((capture(place, tmp_path), evaluate(place, tmp_path), latency(place)), jobs)
    assert not loaded(jobs) & {"torch", "onnx", "onnx_ir", "typer", "rich"}
    assert "onnx_ir" in loaded(jobs, "import onnx_ir")  # the check can fail


def test_inputs_of_any_name_reach_the_child(tmp_path):
    feeds = {
        "file": np.arange(6.0).reshape(2, 3),
        "allow_pickle": np.array(True),
        "a/b": np.int8(3),
    }
    write_feeds(tmp_path / "feeds.npz", feeds)
    with np.load(tmp_path / "feeds.npz") as archive:
        assert archive.files == list(feeds)
        for name, array in feeds.items():
            np.testing.assert_array_equal(archive[name], array)


@pytest.mark.parametrize("name", ["", "captures/0.npz"])
def test_a_full_disk_is_an_error_of_the_user(name, place, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([name] if name else []))

    monkeypatch.setattr(ort_worker, "perform", fail)
    write_tasks((evaluate(place, tmp_path),), tmp_path / "tasks.json")
    ort_worker.main(str(tmp_path / "tasks.json"))
    message = json.loads(capsys.readouterr().out)
    assert message["error"] == "StorageError"
    assert f"{name}: No space" in message["text"] if name else "TMPDIR" in message["text"]


def test_a_profile_that_is_cut_short_is_one_of_a_full_disk(tmp_path):
    (tmp_path / "profile.json").write_text('[{"name": "co')
    with pytest.raises(StorageError, match=r"profile\.json: the profile is not whole"):
        ort_worker._events(tmp_path / "profile.json")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved here")
def test_space_for_outputs_is_reserved(tmp_path):
    array = ort_worker._mapped(str(tmp_path / "y.npy"), np.dtype(np.float32), (1000, 1000))
    assert os.stat(tmp_path / "y.npy").st_blocks * 512 >= array.nbytes
