"""The command line: options, exit codes, what goes to stdout and what to stderr."""

import json
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import qtool
from qtool.cli.console import exits
from qtool.cli.console.progress import _rich_progress, show_progress
from qtool.cli.main import app
from qtool.errors import DataError, UnsupportedError
from qtool.pipeline.context import RunOptions
from qtool.pipeline.dry_run import CheckResult
from qtool.pipeline.estimate.run_time import Estimate
from qtool.progress import silent
from qtool.recipe.registry import KINDS
from qtool.report.report import Report
from qtool.report.verdict import with_verdict

REPORT = {
    "schema": 1,
    "qtool": "0.1.0",
    "command": "ptq",
    "seed": 0,
    "passed": True,
    "model": {"path": "net.onnx", "sha256": "ab", "parameters": 10},
    "output": {"path": "model.onnx", "sha256": "cd", "opset": 21},
}
RECIPE = "model: net.onnx\ncalibrate: {images: train}\n"


class Pipeline(types.ModuleType):
    """Stands in for qtool.pipeline: remembers its calls, does what a test sets."""

    def __init__(self):
        super().__init__("qtool.pipeline.run")
        self.calls = []
        self.passed = True
        self.error = None

    def run_ptq(self, recipe, out, options):
        self.calls.append((recipe, out, options))
        if self.error is not None:
            raise self.error
        options.progress("calibrate", 1, 2, "preprocess guessed: imagenet")
        options.progress("calibrate", 2, 2)
        options.progress("emit", 1, 1)
        return Report.model_validate(REPORT | {"passed": self.passed})

    def check(self, recipe, options):
        rows = [("image", "u8", "model input"), ("/fc/Gemm weight", "float", "bits.layers.last")]
        return CheckResult(tuple(rows), Estimate(130.0, 300 * 2**20, 123_456), ("WARNING: so",))


@pytest.fixture
def pipeline(monkeypatch):
    fake = Pipeline()
    for name in ("qtool.pipeline.run", "qtool.pipeline.dry_run"):
        monkeypatch.setitem(sys.modules, name, fake)
        monkeypatch.setattr(qtool, name.rpartition(".")[2], fake, raising=False)
    return fake


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/x.png").write_bytes(b"")
    (tmp_path / "int8.yaml").write_text(RECIPE)
    monkeypatch.setitem(KINDS, "ptq", replace(KINDS["ptq"], table=dict))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_ptq_prints_the_report_and_exits_0(pipeline):
    result = run("ptq", "--recipe", "int8.yaml")
    assert result.exit_code == 0
    assert "net.onnx" in result.stdout
    assert "\x1b" not in result.output


def test_every_option_reaches_the_pipeline(pipeline, folder):
    (folder / "plan.json").write_text("{}")
    options = "--seed 3 --threads 2 --plan plan.json --fresh --out o --trust-code --requantize"
    options += " --quiet --json"
    result = run("ptq", "--recipe", "int8.yaml", "--set", "calibrate.count=5", *options.split())
    assert result.exit_code == 0, result.output
    ((recipe, out, passed),) = pipeline.calls
    assert recipe.calibrate.count == 5
    assert out == Path("o")
    assert replace(passed, progress=silent) == RunOptions(
        seed=3,
        threads=2,
        plan_file=Path("plan.json"),
        fresh=True,
        trust_code=True,
        requantize=True,
    )


def test_without_options_the_defaults_are_passed(pipeline):
    run("ptq", "--recipe", "int8.yaml")
    ((_, out, passed),) = pipeline.calls
    assert out == Path("runs/int8")
    assert replace(passed, progress=silent) == RunOptions()


def test_model_and_data_need_no_recipe(pipeline, folder):
    assert run("ptq", "--model", "net.onnx", "--data", "train").exit_code == 0
    ((recipe, out, _),) = pipeline.calls
    assert out == Path("runs/net")
    assert recipe.model == folder / "net.onnx"
    assert recipe.evaluate is not None


def test_another_run_gets_a_folder_of_its_own_and_says_so(pipeline):
    run("ptq", "int8.yaml")
    other = run("ptq", "int8.yaml", "--bits", "4")
    assert other.stderr.splitlines()[0] == (
        "qtool: runs/int8 holds another run, this one goes to runs/int8-2; "
        "--overwrite replaces the other"
    )
    assert "holds" not in run("ptq", "int8.yaml", "--bits", "4", "--overwrite").stderr
    folders = [str(out) for _, out, _ in pipeline.calls]
    assert folders == ["runs/int8", "runs/int8-2", "runs/int8"]


@pytest.mark.parametrize("command", ["ptq", "qat"])
@pytest.mark.parametrize("words", [("--bits", "x"), ("a.onnx",), ("a.yaml", "--recipe", "b.yaml")])
def test_errors_of_arguments_are_json_too(pipeline, command, words):
    result = run(command, *words, "--json")
    assert result.exit_code == 2
    assert "found" in json.loads(result.stdout)["error"]["message"]


def test_json_prints_exactly_one_object(pipeline):
    result = run("ptq", "--recipe", "int8.yaml", "--json")
    assert json.loads(result.stdout) == REPORT | {"data": {}, "layers": [], "stages": []} | {
        "gates": [],
        "environment": {},
    }


def test_a_failed_gate_exits_1_and_still_prints(pipeline):
    pipeline.passed = False
    result = run("ptq", "--recipe", "int8.yaml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("train: empty"), 2), (UnsupportedError("node x: no"), 3)],
)
def test_errors_of_the_user_and_of_support(pipeline, error, code):
    pipeline.error = error
    result = run("ptq", "--recipe", "int8.yaml")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == f"qtool: error: {error}\n"


def test_a_full_disk_is_not_a_bug(pipeline):
    pipeline.error = OSError(28, "No space left on device", "runs/x")
    result = run("ptq", "--recipe", "int8.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("qtool: error: runs/x: No space left on device; free space")


def test_a_bug_exits_70_and_saves_the_traceback(pipeline, folder, monkeypatch):
    monkeypatch.setattr(exits.tempfile, "tempdir", str(folder))
    pipeline.error = ZeroDivisionError("division by zero")
    result = run("ptq", "--recipe", "int8.yaml")
    assert result.exit_code == 70
    assert result.stdout == ""
    (saved,) = folder.glob("qtool-bug-*.txt")
    assert result.stderr == (
        "qtool: this is a bug in qtool (ZeroDivisionError: division by zero); please report it "
        f"with the traceback in {saved}\n"
    )
    text = saved.read_text()
    assert "Traceback (most recent call last)" in text
    assert "qtool 0.1.0, Python " in text
    assert "ZeroDivisionError: division by zero" in text


def test_a_bug_that_cannot_be_saved_is_printed(pipeline, monkeypatch):
    def fail(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(exits.tempfile, "mkstemp", fail)
    pipeline.error = ZeroDivisionError("division by zero")
    result = run("ptq", "--recipe", "int8.yaml")
    assert result.exit_code == 70
    assert "Traceback (most recent call last)" in result.stderr
    assert "please report it with the lines above" in result.stderr


def test_ctrl_c_exits_130(pipeline):
    pipeline.error = KeyboardInterrupt()
    result = run("ptq", "--recipe", "int8.yaml")
    assert result.exit_code == 130
    goes_on = "the same command goes on with what is finished in runs/int8"
    assert result.stderr == f"qtool: interrupted: {goes_on}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ptq", "found none of them, expected --recipe R.yaml, or --model M and --data DIR"),
        ("ptq --model net.onnx", "found --model, expected --recipe R.yaml, or --model M and --da"),
        ("ptq --data train", "found --data, expected --recipe R.yaml, or --model M and --data DIR"),
        ("ptq --recipe none.yaml", "none.yaml: cannot read the recipe (No such file or directory"),
        ("ptq --recipe int8.yaml --set a=1", '--set a=1: a: unknown key'),
        ("ptq --recipe int8.yaml --out net.onnx", '--out: "net.onnx" is a file, expected a folder'),
        ("ptq --recipe int8.yaml --plan none.json", '--plan: no file "none.json"; expected the pl'),
        ("ptq --recipe int8.yaml --device tpu", "Invalid value for '--device'"),
        ("ptq --recipe int8.yaml --threads 0", "Invalid value for '--threads'"),
        ("ptq --recipe int8.yaml --seed -1", "Invalid value for '--seed'"),
        ("ptq --recipe int8.yaml --seed x", "Invalid value for '--seed'"),
        ("ptq --recpe int8.yaml", "No such option: --recpe"),
        ("ptq net.onnx train int8.yaml", "expected a recipe (.yaml), or a model and its data"),
        ("quantize", "No such command 'quantize'"),
        ("report", "no run to show"),
        ("report none", "none: no such file; expected a run folder or its report.json"),
        ("check", "expected --recipe R.yaml, or --model M"),
        ("check none.yaml", "none.yaml: cannot read the recipe"),
        ("list wrong", 'list: found "wrong", expected one of calibrators, schemes, scales, p'),
        ("list calibrators ms", 'list calibrators: found "ms", expected one of aciq, auto, b'),
        ("list ptq x", 'list ptq: found "x", expected one of nothing in this version'),
    ],
)  # fmt: skip
def test_user_errors_exit_2_and_write_nothing(pipeline, folder, words, expected):
    before = sorted(folder.rglob("*"))
    result = run(*words.split())
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""
    assert pipeline.calls == []
    assert sorted(folder.rglob("*")) == before


def test_cuda_where_there_is_none_exits_2(pipeline, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("ptq", "--recipe", "int8.yaml", "--device", "cuda")
    assert result.exit_code == 2
    assert "--device: found cuda, but torch sees no CUDA device here; use --device cpu" in (
        result.stderr
    )
    assert pipeline.calls == []


def test_cuda_where_there_is_one_is_passed_on(pipeline, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run("ptq", "--recipe", "int8.yaml", "--device", "cuda").exit_code == 0
    assert pipeline.calls[0][2].device == "cuda"


def test_progress_off_a_terminal_is_a_line_for_each_note_and_stage(pipeline):
    lines = run("ptq", "--recipe", "int8.yaml").stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("calibrate: 1/2, 0.")
    assert lines[0].endswith(" s; preprocess guessed: imagenet")
    assert lines[1].startswith("calibrate: 2/2, 0.")
    assert lines[2].startswith("emit: 1/1, ")


def test_a_stage_that_another_interrupts_has_its_line_when_it_is_complete(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with show_progress(quiet=False) as progress:
        for stage, done, total in (
            ("diagnose", 6, 10),
            ("bias_correction", 4, 4),
            ("diagnose", 10, 10),
            ("read", 7, None),
            ("search", 1, 2),
            ("emit", 1, 1),
        ):
            progress(stage, done, total)
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        *("bias_correction: 4/4", "diagnose: 10/10", "read: 7"),
        *("search: 1/2", "emit: 1/1"),
    ]


def test_units_of_minutes_have_an_eta():
    bars, now = _rich_progress(), 0.0
    bars.get_time = lambda: now
    task = bars.add_task("search: episodes", total=10)
    for done in (1, 2, 3):
        now = 120.0 * done
        bars.update(task, completed=done)
    assert bars.tasks[0].time_remaining == pytest.approx(7 * 120)


def test_quiet_silences_progress(pipeline):
    assert run("ptq", "--recipe", "int8.yaml", "--quiet").stderr == ""


def test_check_prints_the_plan_and_an_estimate(pipeline):
    result = run("check", "int8.yaml")
    assert result.exit_code == 0
    assert result.stdout == (
        "VALUE            BITS   WHY\n"
        "image            u8     model input\n"
        "/fc/Gemm weight  float  bits.layers.last\n"
        "\n"
        "WARNING: so\n"
        "Estimate: about 2 min, 300 MB of memory, a file of 123 kB\n"
    )


def test_check_as_json(pipeline):
    result = run("check", "int8.yaml", "--json", "--set", "calibrate.count=9")
    content = json.loads(result.stdout)
    assert content["plan"][0] == {"name": "image", "bits": "u8", "why": "model input"}
    assert content["estimate"] == {
        "seconds": 130.0,
        "memory_bytes": 300 * 2**20,
        "file_bytes": 123_456,
    }
    assert content["notes"] == ["WARNING: so"]


def test_model_and_data_bits_and_count_stand_for_keys(pipeline):
    words = ("net.onnx", "train", "--bits", "4/8", "--count", "64")
    assert run("ptq", *words).exit_code == 0
    ((recipe, out, _),) = pipeline.calls
    assert (recipe.bits.weights, recipe.bits.activations) == (4, 8)
    assert recipe.calibrate.count == 64 and recipe.evaluate is not None
    assert out == Path("runs/net")
    assert run("check", *words).exit_code == 0


def test_the_recipe_may_stand_alone_and_set_wins_over_bits(pipeline):
    result = run("ptq", "int8.yaml", "--bits", "4", "--set", "bits.weights=5")
    assert result.exit_code == 0
    assert pipeline.calls[0][0].bits.weights == 5


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("net.onnx",), "expected a recipe (.yaml), or a model and its data"),
        (("int8.yaml", "train"), "expected a recipe (.yaml), or a model and its data"),
        (("int8.yaml", "--recipe", "int8.yaml"), "name it once"),
        (("int8.yaml", "--bits", "four"), "--bits: found four, expected 4, or 4/8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipeline, words, text):
    result = run("ptq", *words)
    assert result.exit_code == 2 and text in result.stderr and pipeline.calls == []


def saved(folder: Path, name: str, passed: bool) -> str:
    (folder / name).mkdir()
    text = json.dumps(REPORT | {"passed": passed})
    (folder / name / "report.json").write_text(text)
    return name


def test_report_exits_1_only_with_check(folder):
    good, bad = saved(folder, "good", True), saved(folder, "bad", False)
    assert run("report", good, "--check").exit_code == 0
    assert run("report", bad).exit_code == 0
    assert run("report", bad, "--check").exit_code == 1
    assert run("report", good, bad, "--check").exit_code == 1


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("markdown", "#"),
        ("html", "<!"),
        ("json", "{"),
        ("junit", "<?xml"),
    ],
)
def test_report_writes_each_format(folder, form, start):
    name = saved(folder, "good", True)
    printed = run("report", name, "--format", form)
    assert printed.exit_code == 0
    assert printed.stdout.lower().startswith(start)
    assert run("report", name, "--format", form, "--out", "f").stdout == ""
    assert Path("f").read_text() == printed.stdout


def test_the_width_of_a_report_is_that_of_columns(folder, monkeypatch):
    names = [saved(folder, f"run-{'long-' * 20}{k}", True) for k in range(2)]
    widths = []
    for columns in ("60", "140"):
        monkeypatch.setenv("COLUMNS", columns)
        widths.append(max(map(len, run("report", *names).stdout.splitlines())))
    assert widths[0] <= 60 and 80 < widths[1] <= 140


def test_report_leaves_out_folders_without_a_report_and_says_so(folder):
    (folder / "interrupted").mkdir()
    good = saved(folder, "good", True)
    shown = run("report", good, "interrupted")
    assert shown.exit_code == 0 and "good" not in shown.stderr
    assert shown.stderr == "qtool: interrupted is left out: it holds no report.json\n"
    for words in (["interrupted"], ["interrupted"] * 2, [good, "interrupted", "--check"]):
        assert run("report", *words).exit_code == 2


def test_report_compares_with_a_baseline(folder):
    one, two = saved(folder, "one", True), saved(folder, "two", True)
    result = run("report", one, two, "--baseline", one)
    assert result.exit_code == 0
    assert "one" in result.stdout
    assert "two" in result.stdout


def test_list_shows_every_kind_and_every_name():
    result = run("list")
    assert result.exit_code == 0
    for kind in KINDS.values():
        assert f"{kind.name}\n" in result.stdout
        for name in kind.table():
            assert f"  {name} " in result.stdout
    assert "ptq\n  (none in this version)" in result.stdout


def test_list_of_one_kind_is_only_that():
    shown = run("list", "calibrators").stdout
    assert shown.startswith("calibrators\n")
    assert "readers" not in shown


def test_list_of_one_name_gives_help_and_options():
    shown = run("list", "calibrators", "percentile").stdout
    assert shown.startswith("percentile (calibrators)\n")
    assert "Source: " in shown
    assert "  q  float  default: 0.9999" in shown


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ptq"])
def test_every_entry_of_every_kind_has_help(kind):
    for name in KINDS[kind].table():
        result = run("list", kind, name)
        assert result.exit_code == 0
        assert "(no help)" not in result.stdout


def test_schema_prints_json():
    assert json.loads(run("schema").stdout)["title"] == "qtool recipe"


def test_a_reader_that_left_is_no_error(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        exits.print_result("text")
        exits.print_result("more")


def test_no_arguments_show_the_help():
    result = run()
    assert result.exit_code == 2
    assert "Usage: " in result.output


@pytest.mark.parametrize(
    ("accuracy", "status"),
    [
        ({"samples": 9, "agreement": 100.0}, "not judged"),
        ({"samples": 9, "drop": 0.1}, "passed"),
        ({"samples": 9, "drop": 5.0}, "warning"),
    ],
)
def test_strict_exits_1_for_every_verdict_but_passed(pipeline, folder, accuracy, status):
    pipeline.run_ptq = lambda *_: with_verdict(
        Report.model_validate(REPORT | {"accuracy": accuracy})
    )
    words = ("ptq", "--recipe", "int8.yaml", "--json")
    lenient, strict = run(*words), run(*words, "--strict")
    assert json.loads(lenient.stdout)["verdict"]["status"] == status
    assert (lenient.exit_code, strict.exit_code) == (0, int(status != "passed"))
    (folder / "report.json").write_text(lenient.stdout)
    assert run("report", ".", "--check").exit_code == 0
    assert run("report", ".", "--check", "--strict").exit_code == int(status != "passed")


def test_json_prints_errors_of_the_user_as_one_object(pipeline, folder):
    (folder / "bad.yaml").write_text(RECIPE + "bits:\n  weights: 33\n")
    result = run("ptq", "--recipe", "bad.yaml", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert (error["file"], error["line"], error["key"]) == ("bad.yaml", 4, "bits.weights")
    assert error["message"] in result.stderr and "33" in error["message"]
    unplaced = run("ptq", "--recipe", "missing.yaml", "--json")
    assert set(json.loads(unplaced.stdout)["error"]) == {"message"}
    assert not run("ptq", "--recipe", "bad.yaml").stdout


def test_errors_of_options_name_the_option(pipeline):
    result = run("ptq", "--recipe", "int8.yaml", "--set", "bits.weights=33", "--json")
    error = json.loads(result.stdout)["error"]
    assert error["key"] == "bits.weights" and not {"file", "line"} & set(error)
    assert error["option"] == "--set bits.weights=33"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("--bits 33", "bits.weights"),
        ("--bits 8/33", "bits.activations"),
        ("--memory many", "memory"),
    ],
)
def test_errors_of_short_options_name_them(pipeline, words, key):
    result = run("ptq", "--recipe", "int8.yaml", *words.split(), "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["option"], error["key"]) == (words, key)


def test_report_prints_the_schema_that_its_reports_fit(pipeline):
    result = run("report", "--schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    Draft202012Validator.check_schema(schema)
    written = json.loads(run("ptq", "--recipe", "int8.yaml", "--json").stdout)
    Draft202012Validator(schema).validate(written)
    assert not Draft202012Validator(schema).is_valid(written | {"notes": []})


def test_the_baseline_reaches_the_pipeline(pipeline, folder):
    (folder / "report.json").write_text(json.dumps(REPORT))
    run("ptq", "--recipe", "int8.yaml", "--baseline", ".")
    assert pipeline.calls[-1][2].baseline == Report.model_validate(REPORT)
    missing = run("ptq", "--recipe", "int8.yaml", "--baseline", "elsewhere")
    assert missing.exit_code == 2 and "no such file" in missing.stderr
