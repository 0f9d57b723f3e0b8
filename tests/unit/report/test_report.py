"""report.json: exactly the keys of schema 1, nothing null, nothing infinite, gates checked."""

import json
import math

import pytest
from full_report import FULL, accuracy, changed
from pydantic import ValidationError

from qtool.errors import RecipeError
from qtool.report.report import Accuracy, Parity, Report, Size


def test_full_report_is_the_schema_key_by_key_and_in_order():
    written = Report.model_validate(FULL).to_json()
    assert '"drop_ci95": [-0.05, 0.29],\n' in written  # lists of numbers stand in a line
    assert json.dumps(json.loads(written), indent=2) == json.dumps(FULL, indent=2)


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


def test_numpy_numbers_are_taken_as_numbers():
    np = pytest.importorskip("numpy")
    size = Size(
        float_bytes=np.int64(8), quantized_bytes=np.int32(2), compression=np.float64(4)
    ).model_dump(exclude_none=True)
    assert size == {"float_bytes": 8, "quantized_bytes": 2, "compression": 4.0}
    assert [type(value) for value in size.values()] == [int, int, float]
