"""The real command on the embedded example: what it writes, says, repeats and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from command import qtool
from report_fields import empty_fields

from qtool.report.report import Report

FILES = {
    *("model.onnx", "report.json", "report.html", "report.md"),
    *("plan.json", "plan.npz", "recipe.yaml", "log.jsonl"),
}
CHANGING = {"latency", "stages", "environment"}


@dataclass
class Run:
    """A finished command."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def files(self) -> set[str]:
        return {p.name for p in self.folder.iterdir()} - {".stages"}

    def notes(self, stage: str) -> list[str]:
        return next(s for s in self.report["stages"] if s["name"] == stage)["notes"]


def ptq(folder: Path, *words: object) -> Run:
    done = qtool("ptq", "--out", folder, *words)
    return Run(done.returncode, done.stdout, done.stderr, folder)


@pytest.fixture(scope="module")
def recipe(digits, tmp_path_factory) -> Path:
    """The shipped recipe with fewer calibration images, so that the runs stay short."""
    text = yaml.safe_load((digits / "int8.yaml").read_text())
    text["calibrate"]["count"] = 96
    text["model"] = str(digits / "digits.onnx")
    text["calibrate"]["images"] = str(digits / "data/train")
    text["evaluate"]["images"] = str(digits / "data/test")
    path = tmp_path_factory.mktemp("recipe") / "int8.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture(scope="module")
def first(recipe, tmp_path_factory) -> Run:
    return ptq(tmp_path_factory.mktemp("first") / "run", "--recipe", recipe, "--json")


@pytest.fixture(scope="module")
def resolved(first, tmp_path_factory) -> Run:
    """The recipe that the first run wrote, as it is, in another folder."""
    return ptq(tmp_path_factory.mktemp("other") / "run", "--recipe", first.folder / "recipe.yaml")


def test_a_run_passes_and_writes_its_files(first):
    assert (first.code, first.files) == (0, FILES)
    assert not [p for p in first.folder.rglob("*") if ".tmp-" in p.name or p.name == "scratch"]


def test_a_quantized_file_is_refused_or_turned_back(first, recipe, tmp_path):
    sources = ("--recipe", recipe, "--model", first.folder / "model.onnx")
    refused = ptq(tmp_path / "refused", *sources)
    assert refused.code == 3 and "add --requantize" in refused.err
    again = ptq(tmp_path / "again", *sources, "--requantize", "--json")
    assert again.code == 0
    assert any("this reconstruction" in note for note in again.notes("load"))
    assert again.report["model"]["path"] == str(first.folder / "model.onnx")
    # The float model now is the file that was quantized before, up to rounding.
    after, before = again.report["accuracy"], first.report["accuracy"]
    assert abs(after["float"] - before["quantized"]) <= 0.5
    assert after["agreement"] > 98
    assert again.report["kernels"]["integer"] == first.report["kernels"]["integer"]
    checked = qtool("check", again.folder / "recipe.yaml", "--requantize")
    assert checked.returncode == 0 and "integer kernel" in checked.stdout


def test_json_prints_the_report_and_nothing_else(first):
    assert json.loads(first.out) == first.report


def test_progress_goes_to_stderr_without_bars(first):
    lines = first.err.splitlines()
    assert any(line.startswith("calibrate: 96/96, ") for line in lines)
    assert "\x1b" not in first.err and "Traceback" not in first.err


def keys(value: Any, place: str = "") -> dict[str, Any]:
    """Dotted name -> value of every leaf."""
    if isinstance(value, dict):
        return {k: v for n, item in value.items() for k, v in keys(item, f"{place}.{n}").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {k: v for item in value for k, v in keys(item, f"{place}[]").items()}
    return {place: value}


def test_the_report_has_the_keys_of_the_contract(first):
    report = first.report
    assert list(report) == [
        *("schema", "qtool", "command", "seed", "passed", "verdict", "model", "output", "data"),
        *("accuracy", "size", "latency", "parity", "kernels", "layers", "outputs", "ptq"),
        *("stages", "gates", "environment"),
    ]
    assert all(value is not None and value == value for value in keys(report).values())
    changes = {"class_changes", "changed", "changed_samples"}  # absent where no class changed
    assert report["accuracy"].keys() - changes == {
        *(
            "metric",
            "unit",
            "samples",
            "float",
            "simulated",
            "simulated_samples",
            "quantized",
            "quantized_ci95",
            "drop",
            "drop_ci95",
        ),
        *("agreement", "agreement_ci95"),
        *("chance", "classes", "label_classes"),
    }
    assert report["size"].keys() == {
        *("float_bytes", "quantized_bytes", "compression", "weight_bits_mean"),
        *("weight_payload_bytes", "payload_bytes", "scale_bytes", "code_book_bytes"),
        *("graph_bytes", "weight_huffman_bytes"),
    }
    assert report["latency"].keys() == {
        *("threads", "batch", "float_ms", "quantized_ms", "speedup", "runs", "kernels", "nodes"),
    }
    assert report["parity"].keys() == {
        *("samples", "max_lsb", "share_off", "end_to_end_agreement"),
        *("integer_share_off", "after_float_share_off"),
    }
    assert report["kernels"].keys() == {"integer", "float", "stray_quantize", "saturation_risk"}
    assert report["model"].keys() == {"path", "sha256", "parameters", "macs"}
    assert {"python", "torch", "onnxruntime", "cpu", "isa"} <= report["environment"].keys()
    assert Report.read(first.folder).passed is True


def test_no_field_of_the_report_is_empty(first):
    assert empty_fields(first.folder) == []


def test_the_report_is_true_of_the_file(first):
    import hashlib

    report, file = first.report, first.folder / "model.onnx"
    assert report["output"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report["size"]["quantized_bytes"] == file.stat().st_size
    names = ("payload_bytes", "scale_bytes", "code_book_bytes", "graph_bytes")
    assert sum(report["size"][n] for n in names) == pytest.approx(file.stat().st_size, rel=0.01)
    assert report["output"]["opset"] == 21
    assert report["data"]["calibration"]["count"] == 96
    assert report["data"]["evaluation"]["count"] == report["accuracy"]["samples"] == 450
    accuracy = report["accuracy"]
    assert accuracy["float"] == pytest.approx(100 * 448 / 450, abs=1e-4)
    assert accuracy["drop"] == pytest.approx(accuracy["float"] - accuracy["quantized"], abs=1e-4)
    assert accuracy["drop"] <= 1 and accuracy["agreement"] > 98
    low, high = accuracy["drop_ci95"]
    assert low <= accuracy["drop"] <= high


def test_everything_runs_in_integers_and_nothing_differs(first):
    kernels, parity = first.report["kernels"], first.report["parity"]
    assert kernels["float"] == {} and kernels["stray_quantize"] == []
    assert kernels["integer"]["QLinearConv"] == 9
    assert (parity["max_lsb"], parity["share_off"]) == (0, 0)
    assert parity["end_to_end_agreement"] > 99
    assert len(first.report["layers"]) == 10
    assert all(layer["sqnr_db"] > 20 for layer in first.report["layers"])


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    """The report without the seconds of its steps."""
    steps = [{k: v for k, v in row.items() if k != "seconds"} for row in report["ptq"]]
    return {**report, "ptq": steps}


def activation_grids(folder: Path) -> dict[str, Any]:
    """The grids of a run's plan that have one scale for the tensor."""
    grids = json.loads((folder / "plan.json").read_text())["grids"]
    return {k: g for k, g in grids.items() if g["granularity"] == {"kind": "tensor"}}


def test_the_log_has_a_line_for_each_stage(first):
    lines = [json.loads(line) for line in (first.folder / "log.jsonl").read_text().splitlines()]
    names = [line["name"] for line in lines if "name" in line]
    assert names == [stage["name"] for stage in first.report["stages"]]
    order = ["load", "preprocessing", "rewrite", "annotate", "calibrate", "freeze", "emit"]
    assert [name for name in names if name in order] == order


def test_another_folder_gets_the_same_bytes(first, resolved):
    """Also: the resolved recipe runs again as it is."""
    assert resolved.code == 0
    for name in ("model.onnx", "plan.json", "plan.npz", "recipe.yaml"):
        assert (resolved.folder / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_reports_of_two_runs_are_equal_where_they_must_be(first, resolved):
    one, other = untimed(first.report), untimed(resolved.report)
    assert {k for k in one if one[k] != other[k]} <= CHANGING


def test_the_terminal_shows_the_result(resolved):
    assert "99." in resolved.out and "top-1" in resolved.out
    assert "model.onnx" in resolved.out or "report.html" in resolved.out
    assert "\x1b" not in resolved.out


def test_a_second_run_remembers(recipe, first, tmp_path):
    shutil.copytree(first.folder, tmp_path / "run")
    again = ptq(tmp_path / "run", "--recipe", recipe, "--quiet")
    assert (again.code, again.err) == (0, "")
    stages = {stage["name"]: stage["cached"] for stage in again.report["stages"]}
    assert stages["calibrate"] is True and stages["load"] is False
    assert again.report["latency"] != first.report["latency"]
    one, other = untimed(first.report), untimed(again.report)
    assert {k for k in one if one[k] != other[k]} <= CHANGING
    assert (again.folder / "model.onnx").read_bytes() == (first.folder / "model.onnx").read_bytes()


def test_another_recipe_is_not_remembered_and_a_plan_gives_its_grids(recipe, first, tmp_path):
    """Three images calibrate otherwise; --plan brings the grids of the first run back."""
    shutil.copytree(first.folder, tmp_path / "run")
    few = ["--recipe", recipe, "--set", "calibrate.count=3", "--quiet"]
    other = ptq(tmp_path / "run", *few)
    (note,) = other.notes("calibrate")
    assert note.startswith("3 calibration samples: with fewer than 32")
    assert not next(s for s in other.report["stages"] if s["name"] == "calibrate")["cached"]
    model = (first.folder / "model.onnx").read_bytes()
    assert (other.folder / "model.onnx").read_bytes() != model
    planned = ptq(tmp_path / "plan", *few, "--plan", first.folder / "plan.json")
    grids, earlier = activation_grids(planned.folder), activation_grids(first.folder)
    assert grids == earlier != activation_grids(other.folder) and len(grids) > 5
    assert "nothing was calibrated" in planned.notes("calibrate")[0]


def test_a_gate_that_fails_exits_1_with_all_files(recipe, tmp_path):
    """In the same run: without labels there is agreement, and no key for what was not measured."""
    words = ["--set", "evaluate=null", "--set", "gates={min_compression: 100}"]
    run = ptq(tmp_path / "run", "--recipe", recipe, "--quiet", *words)
    assert (run.code, run.files) == (1, FILES)
    assert run.report["passed"] is False
    gate = next(g for g in run.report["gates"] if g["name"] == "min_compression")
    assert (gate["limit"], gate["passed"]) == (100, False)
    assert run.report["accuracy"].keys() == {"samples", "agreement", "agreement_ci95"}
    assert run.report["accuracy"]["samples"] == 12  # an eighth of the calibration images
    assert run.report["data"]["calibration"]["count"] == 84
    assert "evaluation" not in run.report["data"]


def test_a_float_layer_stays_float(recipe, tmp_path):
    """One with a Relu behind it, one with an Add, and the last."""
    names = ("blocks.2/depthwise", "blocks.3/pointwise")
    layers = f'bits.layers={{"name:*{names[0]}*": float, "name:*{names[1]}*": float, last: float}}'
    run = ptq(tmp_path / "run", "--recipe", recipe, "--set", layers, "--set", "gates={}")
    assert run.code == 0
    widths = {layer["name"]: layer["weight_bits"] for layer in run.report["layers"]}
    assert [name for name, bits in widths.items() if bits == "float"] == [
        "/blocks/blocks.2/depthwise/depthwise.0/Conv",
        "/blocks/blocks.3/pointwise/pointwise.0/Conv",
        "/head/Gemm",
    ]
    kernels = run.report["kernels"]
    assert kernels["float"]["Conv"] == 2 and kernels["integer"]["QLinearConv"] == 7
    assert kernels["stray_quantize"] == []
    assert run.report["size"]["weight_bits_mean"] > 8
    assert run.report["parity"]["max_lsb"] <= 1


@pytest.fixture(scope="module")
def fixed(recipe, digits, tmp_path_factory) -> Run:
    """The same network, its batch fixed at 7: 450 = 64 * 7 + 2."""
    model = onnx.load(digits / "digits.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    folder = tmp_path_factory.mktemp("fixed")
    onnx.save(model, folder / "fixed.onnx")
    return ptq(folder / "run", "--recipe", recipe, "--quiet", "--model", folder / "fixed.onnx")


def test_a_fixed_batch_gives_the_same_accuracy(first, fixed):
    assert fixed.code == 0
    assert fixed.report["latency"]["batch"] == 7
    for key in ("samples", "float"):
        assert fixed.report["accuracy"][key] == first.report["accuracy"][key]
    # Padding repeats samples, so statistics see the last batch's twice: grids may differ a little.
    assert fixed.report["accuracy"]["drop"] <= 1
    assert fixed.report["parity"]["share_off"] == 0


@pytest.mark.slow
def test_a_model_and_a_folder_are_enough(digits, tmp_path):
    words = ["--model", digits / "digits.onnx", "--data", digits / "data/test"]
    run = ptq(tmp_path / "run", *words)
    assert run.code == 0
    assert run.report["data"]["calibration"]["count"] == 225
    assert run.report["data"]["evaluation"]["count"] == 225
    assert any("preprocessing guessed from the input shape" in n for n in run.notes("load"))
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["calibrate"]["take"]


def test_check_prints_the_plan_and_writes_nothing(recipe):
    before = sorted(recipe.parent.iterdir())
    done = qtool("check", recipe)
    assert (done.returncode, sorted(recipe.parent.iterdir())) == (0, before)
    assert "/head/Gemm" in done.stdout and "W8A8" in done.stdout and "Estimate:" in done.stdout


def test_report_compares_real_runs(first, resolved):
    done = qtool("report", first.folder, resolved.folder, "--baseline", first.folder)
    assert done.returncode == 0
    assert "99." in done.stdout
    done = qtool("report", first.folder, "--format", "json", "--check")
    assert (done.returncode, json.loads(done.stdout)) == (0, first.report)


def test_an_interrupt_while_calibrating_leaves_nothing_half_done(recipe, tmp_path):
    words = ["ptq", "--recipe", recipe, "--out", tmp_path / "run", "--set", "calibrate.count=1347"]
    with subprocess.Popen(
        [sys.executable, "-m", "qtool", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        # The line of `load` is printed when `calibrate` has done its first batch.
        assert process.stderr.readline().startswith("load: ")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("qtool: interrupted: the same command goes on")
    left = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert left == []


def test_the_weights_in_the_file_are_integers(first):
    held = {t.name: t for t in onnx.load(first.folder / "model.onnx").graph.initializer}
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    codes = [t for name, t in held.items() if name.endswith("_quantized")]
    assert len(codes) == 20 and {t.data_type for t in codes} == kinds
    floats = [t for t in held.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(t.dims)) for t in floats) < 0.05 * first.report["model"]["parameters"]
