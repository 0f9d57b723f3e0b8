"""Targets without floats and without VNNI: what they place, what their reports say."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import BUILDERS, Net, bind, cpu, feeds_for, make_plan, rewritten

from qtool.annotation.annotator import annotate
from qtool.errors import RecipeError, UnsupportedError
from qtool.pipeline.checks import plan_evaluator
from qtool.pipeline.context import RunOptions
from qtool.pipeline.run import run_ptq
from qtool.quant.bit_widths import Bits
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.model import Bits as RequestedBits
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.report.report import Report
from qtool.targets.loader import load_target

NAMES = ("integer-only", "onnxruntime-cpu-no-vnni")


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("name", BUILDERS)
def test_they_place_what_onnxruntime_executes(target, name):
    """The golden placement holds for them too: scales differ, grids are assigned alike."""
    model = BUILDERS[name]().model()
    rewritten(model)
    plain, own = (annotate(model, t, Bits()) for t in (cpu(), load_target(target)))
    assert (plain.sites, plain.grid_of, plain.data_movement_ops) == (
        own.sites,
        own.grid_of,
        own.data_movement_ops,
    )


def test_integer_only_asks_for_shifts_by_default():
    model, target = Net().output().model(), load_target("integer-only")
    assert resolve_bits(RequestedBits(), model, target).scale == "power_of_two"
    requested = RequestedBits(scale="double_shift")
    assert resolve_bits(requested, model, target).scale == "double_shift"
    with pytest.raises(RecipeError, match="takes 1 to 8 bits"):
        resolve_bits(RequestedBits(activations=16), model, target)


def middle() -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    x = net.add("Softmax", x, axis=1, name="middle")
    return net.output(net.conv(x, 8, 4, out="y"))


def test_a_float_in_the_middle_is_refused_before_anything_is_calibrated():
    model = middle().model()
    bind(model, feeds_for(model))
    make_plan(model, cpu(), Bits())
    with pytest.raises(UnsupportedError, match=r'"middle" \(Softmax\)'):
        make_plan(model, load_target("integer-only"), Bits())


def ran(folder: Path, net: Net, target: str) -> Report:
    onnx.save(net.proto(), folder / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "a.npz", x=rng.normal(0, 1, (24, 4, 8, 8)).astype(np.float32),
             y=rng.integers(0, 5, 24))  # fmt: skip
    data = {"arrays": "a.npz", "take": {"every": 2, "offset": 0}}
    recipe = {
        "model": "net.onnx",
        "target": target,
        "calibrate": data,
        "evaluate": {**data, "take": {"every": 2, "offset": 1}},
    }
    return run_ptq(
        recipe_from_keywords(recipe, "r", folder, files=True), folder / "out", RunOptions(threads=1)
    )


def classifier(positive_first: bool = False) -> Net:
    """A small network; ``positive_first``: its positive scores are an output in front of all."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    x = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", net.conv(x, 8, 8))))
    y = net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="out")
    if positive_first:
        above = net.add("Greater", y, net.const(0.0))
        rows = net.add("Reshape", above, net.const(np.array([-1])))
        net.output(net.add("Compress", y, rows, out="positive"))
    return net.output(y)


def test_the_report_says_how_the_reference_compares(tmp_path):
    report = ran(tmp_path, classifier(positive_first=True), "integer-only")
    reference = report.parity.integer_only
    assert (reference.max_lsb, reference.share_off, reference.agreement) == (0, 0.0, 100.0)
    assert "integers" in [stage.name for stage in report.stages]
    assert "integer_only" in report.model_dump_json()
    assert "integers only" in (tmp_path / "out" / "report.html").read_text()


def test_other_targets_do_not_run_it(tmp_path):
    report = ran(tmp_path, classifier(), "onnxruntime-cpu")
    assert report.parity.integer_only is None


def test_layers_that_may_saturate_are_listed_where_they_may(tmp_path, monkeypatch):
    """On a machine that adds pairs in int16 the layers are named, and safe scales leave none."""
    monkeypatch.setattr(plan_evaluator, "adds_pairs", lambda isa: True)
    report = ran(tmp_path, classifier(), "onnxruntime-cpu")
    risky = report.kernels.saturation_risk
    assert risky and set(risky) <= {layer.name for layer in report.layers}
    (stage,) = [stage for stage in report.stages if stage.name == "saturation"]
    assert "saturate" in stage.notes[0]
    assert risky[0] in (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "safe").mkdir()
    safe = ran(tmp_path / "safe", classifier(), "onnxruntime-cpu-no-vnni")
    assert safe.kernels.saturation_risk is False
