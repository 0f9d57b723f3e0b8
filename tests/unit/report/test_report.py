"""report.json: exactly the keys of schema 1, nothing null, nothing infinite, gates checked."""

import copy
import json
import math

import pytest
from pydantic import ValidationError

from qtool.errors import RecipeError
from qtool.report.report import (
    Accuracy,
    Gate,
    Latency,
    Parity,
    Report,
    Size,
    check_gates,
    parity_gates,
    verdict,
)

FULL = {
    "schema": 1,
    "qtool": "0.1.0",
    "command": "ptq",
    "seed": 0,
    "passed": True,
    "model": {"path": "net.onnx", "sha256": "ab", "parameters": 272474, "macs": 40800000},
    "output": {"path": "model.onnx", "sha256": "cd", "opset": 21},
    "data": {
        "calibration": {"count": 512, "sha256": "ef"},
        "evaluation": {"count": 10000, "sha256": "01"},
    },
    "accuracy": {
        "metric": "top1",
        "unit": "%",
        "samples": 10000,
        "float": 91.73,
        "simulated": 91.61,
        "quantized": 91.61,
        "drop": 0.12,
        "drop_ci95": [-0.05, 0.29],
        "agreement": 98.4,
    },
    "size": {
        "float_bytes": 1092222,
        "quantized_bytes": 290112,
        "compression": 3.76,
        "weight_bits_mean": 8.0,
        "weight_payload_bytes": 272474,
    },
    "latency": {
        "threads": 1,
        "batch": 1,
        "float_ms": 2.1,
        "quantized_ms": 1.0,
        "speedup": 2.1,
        "runs": 50,
    },
    "parity": {"samples": 64, "max_lsb": 0, "share_off": 0.0, "end_to_end_agreement": 100.0},
    "kernels": {
        "integer": {"QLinearConv": 20},
        "float": {},
        "stray_quantize": [],
        "saturation_risk": False,
    },
    "layers": [
        {
            "name": "/conv1/Conv",
            "op": "Conv",
            "weight_bits": 8,
            "activation_bits": 8,
            "granularity": "channel",
            "sqnr_db": 38.2,
            "bytes": 448,
        }
    ],
    "outputs": [
        {
            "name": "y",
            "sqnr_db": 31.5,
            "compared": True,
            "groups": [{"axis": 1, "start": 0, "stop": 4, "source": "boxes", "sqnr_db": 29.1}],
        }
    ],
    "stages": [
        {
            "name": "calibrate",
            "seconds": 3.2,
            "peak_rss_mb": 611,
            "cached": False,
            "notes": ["512 samples"],
        }
    ],
    "gates": [{"name": "max_drop", "limit": 1.0, "value": 0.12, "passed": True}],
    "environment": {
        "python": "3.11",
        "torch": "2.7",
        "onnxruntime": "1.22",
        "cpu": "a cpu",
        "isa": ["avx512_vnni"],
    },
}


def changed(**parts):
    data = copy.deepcopy(FULL)
    for key, value in parts.items():
        data.pop(key) if value is None else data.update({key: value})
    return Report.model_validate(data)


def accuracy(drop=0.12, interval=(-0.05, 0.29)):
    return {**FULL["accuracy"], "drop": drop, "drop_ci95": list(interval)}


def gate(limit, value, name="max_drop"):
    return {"name": name, "limit": limit, "value": value, "passed": value <= limit}


def test_full_report_is_the_schema_key_by_key_and_in_order():
    written = Report.model_validate(FULL).to_json()
    assert written == json.dumps(FULL, indent=2) + "\n"


def test_absent_parts_are_absent_not_null():
    report = changed(
        accuracy={"samples": 64, "agreement": 97.5},
        latency=None,
        parity=None,
        data={"calibration": {"count": 512, "sha256": "ef"}},
        layers=[{"name": "head", "op": "Gemm", "weight_bits": "float", "bytes": 5}],
    )
    data = json.loads(report.to_json())
    assert data["accuracy"] == {"samples": 64, "agreement": 97.5}
    assert data["data"] == {"calibration": {"count": 512, "sha256": "ef"}}
    assert data["layers"] == [{"name": "head", "op": "Gemm", "weight_bits": "float", "bytes": 5}]
    assert {"latency", "parity"}.isdisjoint(data)
    assert "null" not in report.to_json()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_say_are_refused(bad):
    with pytest.raises(ValidationError, match="finite"):
        Accuracy(samples=1, agreement=bad)
    with pytest.raises(ValidationError, match="finite"):
        changed(accuracy=accuracy(interval=(bad, 1.0)))


def test_unknown_keys_are_refused_and_reports_are_frozen():
    with pytest.raises(ValidationError, match="extra"):
        changed(notes=["a key the schema does not have"])
    with pytest.raises(ValidationError, match="frozen"):
        Report.model_validate(FULL).seed = 1


def test_counts_and_environment_have_one_order():
    one = changed(
        kernels={"integer": {"QGemm": 1, "QLinearConv": 2}},
        environment={"python": "3", "cpu": "c", "threads": 2},
    )
    other = changed(
        kernels={"integer": {"QLinearConv": 2, "QGemm": 1}},
        environment={"threads": 2, "cpu": "c", "python": "3"},
    )
    assert one.to_json() == other.to_json()


def test_read_takes_a_file_or_a_run_folder(tmp_path):
    report = Report.model_validate(FULL)
    path = tmp_path / "report.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert Report.read(path) == Report.read(tmp_path) == report


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        ('{"schema": 2}', "schema 2, expected 1"),
        ("{}", "schema None, expected 1"),
        (json.dumps({**FULL, "seed": "x"}), "at seed"),
        (json.dumps(FULL).replace("91.73", "NaN"), "at accuracy.float"),
    ],
)
def test_read_says_where_and_what_is_wrong(tmp_path, content, said):
    path = tmp_path / "report.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=said) as caught:
        Report.read(tmp_path)
    assert str(path) in str(caught.value)
    assert "run again" in str(caught.value)
    assert caught.value.exit_code == 2


def test_read_of_nothing_and_of_bytes(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        Report.read(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not JSON"):
        Report.read(tmp_path)


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        ({"max_drop": 0.12}, True),
        ({"max_drop": 0.1199}, False),
        ({"min_compression": 3.76}, True),
        ({"min_compression": 3.7601}, False),
        ({"min_speedup": 2.1}, True),
        ({"min_speedup": 2.1001}, False),
    ],
)
def test_a_value_on_the_limit_passes(limits, passes):
    report = Report.model_validate(FULL)
    (checked,) = check_gates(limits, report.accuracy, report.size, report.latency)
    assert checked.passed is passes
    assert {checked.name: checked.limit} == limits


def test_a_gate_is_refused_that_was_not_measured_or_is_not_a_gate():
    nothing = Accuracy(samples=64, agreement=97.0)
    with pytest.raises(RecipeError, match=r"gates\.max_drop: 1 .*evaluate"):
        check_gates({"max_drop": 1.0}, nothing, None, None)
    with pytest.raises(RecipeError, match=r"gates\.min_speedup"):
        check_gates({"min_speedup": 1.5}, nothing, None, None)
    with pytest.raises(RecipeError, match='did you mean "max_drop"'):
        check_gates({"max_dropp": 1.0}, nothing, None, None)


def test_gates_that_are_not_set_are_left_out():
    size = Size(float_bytes=4, quantized_bytes=1, compression=4.0)
    timing = Latency(threads=1, batch=1, float_ms=1, quantized_ms=1, speedup=1, runs=1)
    checked = check_gates({"max_drop": None, "min_compression": 3.0}, None, size, timing)
    assert [one.name for one in checked] == ["min_compression"]


@pytest.mark.parametrize(
    ("shares", "lsb", "passes"),
    [
        ({"share_off": 1e-5}, 1, True),
        ({"share_off": 1.1e-5}, 1, False),
        ({"share_off": 0.0}, 2, False),
        ({"share_off": 1e-3, "integer_share_off": 1e-5, "after_float_share_off": 1e-3}, 1, True),
        ({"share_off": 1e-3, "integer_share_off": 0.0, "after_float_share_off": 1.1e-3}, 0, False),
        ({"share_off": 0.0, "wide_share_off": 1e-2}, 1, True),
        ({"share_off": 0.0, "wide_share_off": 1.1e-2}, 1, False),
    ],
)
def test_parity_at_its_limits(shares, lsb, passes):
    parity = Parity(samples=1, max_lsb=lsb, **shares)
    assert parity.passed is passes
    assert all(gate.passed for gate in parity.gates) is passes


def test_integer_codes_have_a_limit_that_a_pooled_share_cannot_hide():
    # 100 of 10^6 integer codes differ, none of 9 * 10^6 after float operators: pooled 1e-5.
    parity = {"samples": 1, "max_lsb": 1, "share_off": 1e-5, "integer_share_off": 1e-4}
    parity["after_float_share_off"] = 0.0
    assert Parity(**{k: parity[k] for k in ("samples", "max_lsb", "share_off")}).passed
    report = changed(parity=parity, passed=False, kernels={"float": {"Softmax": 1}})
    assert not report.parity.passed
    (failed,) = [gate for gate in parity_gates(report) if not gate.passed]
    assert (failed.name, failed.limit, failed.value) == ("parity_integer_share_off", 1e-5, 1e-4)
    level, sentence = verdict(report)
    assert level == "failed" and "parity_integer_share_off 0.0001 (limit 1e-05)" in sentence
    assert json.loads(report.to_json())["parity"] == parity


def test_parity_gates_are_shown_once():
    assert len(parity_gates(Report.model_validate(FULL))) == 2
    listed = [*FULL["gates"], gate(1.0, 0.0, "parity_max_lsb")]
    assert parity_gates(changed(gates=listed)) == []
    assert parity_gates(changed(parity=None)) == []


@pytest.mark.parametrize(
    ("limit", "drop", "interval", "level"),
    [
        (1.0, 0.12, (-0.05, 0.29), "passed"),
        (1.0, 0.9, (0.5, 1.3), "not proven"),
        (1.0, 0.9, (0.5, 1.0), "passed"),  # the whole interval is within the limit
        (0.5, 0.5, (0.5, 0.6), "not proven"),
        (0.0, 0.0, (0.0, 0.0), "passed"),
        (None, 1.0, (0.9, 1.1), "passed"),
        (None, 1.01, (0.9, 1.1), "warning"),
    ],
)
def test_verdict(limit, drop, interval, level):
    gates = [] if limit is None else [gate(limit, drop)]
    report = changed(accuracy=accuracy(drop, interval), gates=gates)
    assert verdict(report)[0] == level


def test_a_failed_run_names_its_gates_and_its_doubt():
    report = changed(passed=False, accuracy=accuracy(1.2, (0.8, 1.6)), gates=[gate(1.0, 1.2)])
    level, sentence = verdict(report)
    assert level == "failed"
    assert "max_drop 1.2 (limit 1)" in sentence
    assert "inside" in sentence


def test_a_parity_failure_is_named():
    report = changed(passed=False, parity={"samples": 1, "max_lsb": 2, "share_off": 0.0})
    assert "parity_max_lsb 2 (limit 1)" in verdict(report)[1]


def test_a_warning_comes_also_where_another_gate_is_set():
    report = changed(
        accuracy=accuracy(5.0, (4.0, 6.0)),
        gates=[Gate(name="min_compression", limit=3, value=4, passed=True).model_dump()],
    )
    assert verdict(report)[0] == "warning"


def test_numpy_numbers_are_taken_as_numbers():
    np = pytest.importorskip("numpy")
    size = Size(
        float_bytes=np.int64(8), quantized_bytes=np.int32(2), compression=np.float64(4)
    ).model_dump(exclude_none=True)
    assert size == {"float_bytes": 8, "quantized_bytes": 2, "compression": 4.0}
    assert [type(value) for value in size.values()] == [int, int, float]
