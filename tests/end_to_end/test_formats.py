"""Runs in every form of file, judged as any other: what the report says, and who can read it."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qtool.pipeline.run import run_ptq
from qtool.quant.quantized_io import KEY, read_quantized_io
from qtool.recipe.loader import load_recipe

FORMS = {
    "qoperator": ["output.format=qoperator"],
    "qonnx": ["output.format=qonnx", "gates.min_compression=null"],
    "codes": ["output.io=quantized"],
    "opset 25": ["output.opset=25", "bits.weights=4"],
    "npu-u16": ["target=npu-u16", "bits.granularity=tensor", "bits.activations=16"],
    "amx": ["target=onnxruntime-cpu-amx"],
}


SLOW = ("opset 25", "npu-u16", "amx")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.slow] * (form in SLOW)) for form in FORMS]
)
def test_a_run(form, digits, tmp_path):
    recipe = load_recipe(digits / "int8.yaml", [*FORMS[form], "gates.max_drop=5", "ptq=[]"])
    report = run_ptq(recipe, tmp_path)
    assert report.passed
    assert abs(report.accuracy.simulated - report.accuracy.quantized) <= 0.5
    file = onnx.load(tmp_path / "model.onnx")
    kinds = {n.op_type for n in file.graph.node}
    notes = [note for stage in report.stages for note in stage.notes or ()]
    if form == "qoperator":
        assert "QLinearConv" in kinds and "Conv" not in kinds
        assert report.parity.share_off == 0 and report.output.format == "qoperator"
    elif form == "qonnx":
        assert "Quant" in kinds and not report.kernels.integer
    elif form == "codes":
        _reads_codes(tmp_path / "model.onnx", file, report)
    elif form == "opset 25":
        assert report.output.opset == 25 == file.opset_import[0].version
    elif form == "npu-u16":
        assert 0 <= report.parity.wide_share_off <= 1e-2 and report.parity.max_lsb <= 1
        assert any("an NPU has its own" in note for note in notes)
    else:
        lacks = any("gain speed on processors with amx_int8" in note for note in notes)
        assert lacks == ("amx_int8" not in report.environment["isa"])


def _reads_codes(path, file, report):
    """The metadata is enough to feed the file, and the report says the same."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {v.type for v in (*session.get_inputs(), *session.get_outputs())} == {"tensor(uint8)"}
    metadata = session.get_modelmeta().custom_metadata_map
    said = json.loads(metadata[KEY])
    shown = report.model_dump(exclude_none=True)["output"]
    assert said["inputs"] == shown["inputs"] and said["outputs"] == shown["outputs"]
    ends = read_quantized_io(metadata)
    image = np.random.default_rng(0).normal(0, 1, (1, 1, 32, 32)).astype(np.float32)
    (codes,) = session.run(None, ends.feeds({"image": image}))
    assert codes.dtype == np.uint8 and ends.values("scores", codes).dtype == np.float32
    assert not {"QuantizeLinear"} & {n.op_type for n in file.graph.node[:1]}
