"""Training starts from the repaired plan where its quantizer starts from the plan's codes."""

import pytest

from qtool.pipeline.run import _with_training_defaults
from qtool.qat.quantizers import QAT_QUANTIZERS
from qtool.recipe.loader import recipe_from_keywords


def recipe(folder, quantizer, **parts):
    data = {"model": "net.onnx", "calibrate": {"images": "a"}, **parts}
    data["qat"] = {"images": "b", "quantizer": quantizer}
    return recipe_from_keywords(data, "here", folder, files=False)


@pytest.mark.parametrize("name", QAT_QUANTIZERS)
def test_default_steps_come_before_training_from_the_plans_codes(name, tmp_path):
    resolved = _with_training_defaults(recipe(tmp_path, name))
    ptq = resolved.ptq
    assert resolved.bits.scheme.name == QAT_QUANTIZERS[name].scheme
    # None: the default steps are added once the widths and the samples are read.
    assert ptq == (None if QAT_QUANTIZERS[name].starts_from_codes else ())
    equal_steps = {"lsq", "lsq_plus", "ste", "ewgs", "nice", "faq", "regularization"}
    assert QAT_QUANTIZERS[name].starts_from_codes == (name in equal_steps)


def test_steps_that_the_recipe_names_run_in_any_case(tmp_path):
    named = recipe(tmp_path, "pact", ptq=["gptq"])
    assert [step.name for step in _with_training_defaults(named).ptq] == ["gptq"]


@pytest.mark.parametrize(
    ("bits", "lr", "epochs"),
    [({}, 1e-4, 1), ({"weights": 4}, 1.5e-3, 10), ({"layers": {"last": 4}}, 1.5e-3, 10)],
)
def test_faq_brings_its_schedule_and_its_rate_where_the_recipe_has_none(bits, lr, epochs, tmp_path):
    resolved = _with_training_defaults(recipe(tmp_path, "faq", bits=bits)).qat
    assert (resolved.schedule, resolved.lr, resolved.epochs) == ("exponential", lr, epochs)
    named = recipe(tmp_path, "faq", bits=bits)
    own = {"schedule": "cosine", "lr": 0.02, "epochs": 3}
    named = named.model_copy(update={"qat": named.qat.model_copy(update=own)})
    resolved = _with_training_defaults(named).qat
    assert (resolved.schedule, resolved.lr, resolved.epochs) == ("cosine", 0.02, 3)


def test_faq_brings_its_calibrator_where_the_recipe_has_none(tmp_path):
    resolved = _with_training_defaults(recipe(tmp_path, "faq"))
    assert resolved.calibrate.method.model_dump() == {"percentile": {"q": 0.9999}}
    own = {"calibrate": {"images": "a", "method": "mse"}}
    kept = recipe(tmp_path, {"faq": {}}, **own)
    assert _with_training_defaults(kept).calibrate.method.name == "mse"
    assert _with_training_defaults(recipe(tmp_path, "lsq")).qat.schedule == "cosine"
