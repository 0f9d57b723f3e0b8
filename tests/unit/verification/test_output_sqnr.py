"""Quality of every output: what the child compares, and the part of the report."""

import numpy as np
import onnx
import pytest
from models import Net

from qtool.data import DataSection, InputSpec
from qtool.metrics.fidelity import finite_powers, power_db
from qtool.report.layer_schema import OutputGroup, OutputQuality
from qtool.verification import ort_worker
from qtool.verification.output_sqnr import output_slices, outputs_part
from qtool.verification.tasks import ComparedOutputs, CompareOutputs, Samples, Slice

ROWS = 6


def scaled(factor: float) -> Net:
    """Two halves, the second times a factor; their sum; the whole numbers of the first."""
    net = Net()
    x = net.input("x", "N", 4)
    second = net.add("Mul", x, net.const(np.float32(factor)), out="second")
    net.add("Concat", x, second, axis=1, out="joined")
    net.add("Identity", x, out="same")
    net.add("Cast", x, to=7, out="whole")
    net.output("joined", "same")
    net.outputs.append(onnx.helper.make_tensor_value_info("whole", 7, None))
    return net


@pytest.fixture
def compared(tmp_path, monkeypatch):
    monkeypatch.setattr(ort_worker, "_send", lambda **message: None)
    for name, factor in (("float", 1.0), ("quantized", 0.9)):
        onnx.save(scaled(factor).proto(), tmp_path / f"{name}.onnx")
    x = np.random.default_rng(0).normal(0, 1, (ROWS, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    section = DataSection.model_validate({"arrays": {"path": str(tmp_path / "x.npz")}})
    samples = Samples.of(section, {"x": InputSpec("x", ("N", 4), "float32")}, range(ROWS), False)
    slices = output_slices(scaled(1.0).model())
    paths = (str(tmp_path / "float.onnx"), str(tmp_path / "quantized.onnx"))
    return slices, ort_worker.perform(CompareOutputs(*paths, slices, samples)), x


def test_slices_are_the_outputs_and_then_their_groups(compared):
    assert compared[0] == (
        *(Slice(name) for name in ("joined", "same", "whole")),
        Slice("joined", 1, 0, 4, "x"),
        Slice("joined", 1, 4, 8, "second"),
    )


def test_powers_are_those_of_all_samples(compared):
    _, result, x = compared
    power = float(np.square(x, dtype=np.float64).sum())
    joined, same, whole, first, second = result.powers
    assert result.samples == ROWS
    assert same == first == (pytest.approx(power), 0.0)
    assert second == pytest.approx((power, 0.01 * power), rel=1e-5)
    assert joined == pytest.approx((2 * power, 0.01 * power), rel=1e-5)
    assert whole is None


def test_the_report_names_what_has_no_number(compared):
    slices, result, _ = compared
    joined, same, whole = outputs_part(slices, result)
    assert joined.sqnr_db == pytest.approx(10 * np.log10(200), abs=1e-3)
    assert joined.groups == [
        OutputGroup(axis=1, start=0, stop=4, source="x"),
        OutputGroup(axis=1, start=4, stop=8, source="second", sqnr_db=20.0),
    ]
    assert same == OutputQuality(name="same")
    assert whole == OutputQuality(name="whole", compared=False)


def test_a_missing_output_is_not_compared():
    part = outputs_part((Slice("y"),), ComparedOutputs((None,), 0))
    assert part == [OutputQuality(name="y", compared=False)]


def test_elements_that_are_not_finite_are_left_out():
    reference, test = np.array([3.0, np.inf, 4.0]), np.array([3.0, 1.0, np.nan])
    assert finite_powers(reference, test) == (9.0, 0.0)
    assert power_db(9.0, 0.0) is power_db(0.0, 1.0) is None
    assert power_db(100.0, 1.0) == 20.0
