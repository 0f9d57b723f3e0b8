"""``qtool sweep``: every combination once, equal files for any number of processes, errors."""

import json

import pytest
from typer.testing import CliRunner

from qtool.cli.main import app
from qtool.errors import RecipeError
from qtool.pipeline.search import sweep
from qtool.pipeline.search.sweep import variants_of

SMALL = ("--over", "calibrate.count=16", "--over", "evaluate.count=16")


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def test_combinations():
    names = [v.name for v in variants_of(["bits.weights=8,4", "model=a.onnx,b/c.onnx"])]
    assert names == [
        "bits.weights=8,model=a.onnx",
        "bits.weights=8,model=b_c.onnx",
        "bits.weights=4,model=a.onnx",
        "bits.weights=4,model=b_c.onnx",
    ]
    assert variants_of(["ptq=[],[gptq]"])[1].settings == ("ptq=[gptq]",)
    for bad in ("bits.weights", "=4", "bits.weights="):
        with pytest.raises(RecipeError, match="expected KEY=A,B"):
            variants_of([bad])


def test_long_values_are_whole_and_names_occur_once():
    steps = ", ".join(f"step_number_{k}" for k in range(12))
    assert variants_of([f"ptq=[{steps}]"])[0].settings == (f"ptq=[{steps}]",)
    for over in ("bits.weights=4,8,4", "model=a/b.onnx,a_b.onnx"):
        with pytest.raises(RecipeError, match="two runs would be named"):
            variants_of([over])


def test_each_once_and_the_same_for_any_number_of_processes(digits, tmp_path):
    recipe = digits / "int8.yaml"
    hashes = []
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        args = ("sweep", recipe, "--over", "bits.weights=8,6", *SMALL, "--out", out)
        result = run(*args, "--jobs", jobs, "--quiet")
        assert result.exit_code == 0, result.output
        assert "weights=6" in result.stdout and "weights=8" in result.stdout
        reports = [json.loads(p.read_text()) for p in sorted(out.glob("*/report.json"))]
        hashes.append([report["output"]["sha256"] for report in reports])
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 2
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/report.json")}
    assert run(*args, "--quiet").exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/report.json")} == before


def test_a_wrong_value_is_refused_before_anything_runs(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_ptq", lambda *args: pytest.fail("it ran"))
    result = run(
        "sweep", digits / "int8.yaml", "--over", "bits.weights=8,99", "--out", tmp_path / "out"
    )
    assert result.exit_code == 2 and "bits.weights" in result.output
    assert not (tmp_path / "out").exists()


def test_a_changed_file_is_noticed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.npz").write_bytes(b"1")
    seen = [sweep.FileDigests().of(tmp_path / "data")]
    (tmp_path / "data" / "a.npz").write_bytes(b"2")
    seen.append(sweep.FileDigests().of(tmp_path / "data"))
    (tmp_path / "data" / "a.npz").rename(tmp_path / "data" / "b.npz")
    seen.append(sweep.FileDigests().of(tmp_path / "data"))
    assert len(set(seen)) == 3 and seen[-1] == sweep.FileDigests().of(tmp_path / "data")
