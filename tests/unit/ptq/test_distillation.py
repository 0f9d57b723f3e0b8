"""Distillation: closer to the float network, labels not read, the same bytes again."""

from dataclasses import replace

import numpy as np
import pytest
from contexts import calibrated
from models import BUILDERS, Net, cpu, run

from qtool.emitters import emit_qdq
from qtool.errors import RecipeError, UnsupportedError
from qtool.graph.queries import computed_elements
from qtool.ptq import Distillation, Gptq, distillation
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan_archive import plan_digest
from qtool.quant.primitives import Codebook, QuantParams
from qtool.simulation.fake_quant import Simulation

FOUR = Bits(weights=4, activations=4)
STEP = Distillation(epochs=3, lr=0.003, batch=16)


def setup(name, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    return calibrated(BUILDERS[name](), FOUR, rows=128, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("residual", FOUR), ("conv_bn_relu", Bits(3, 4)), ("inverted_bottleneck", FOUR)],
)
def test_it_comes_closer_and_the_file_computes_it(name, bits, tmp_path):
    plan, context = calibrated(BUILDERS[name](), bits, rows=128, folder=tmp_path)
    rounded = Gptq()(plan, context).plan
    result = STEP(rounded, context)
    assert result.metrics["epoch"] > 0
    assert context.loss(result.plan) < context.loss(rounded)
    frozen = freeze(context.model, result.plan)
    feeds = next(context.feeds(context.holdout, 4))[0]
    want = Simulation(context.model, frozen)(feeds)
    for output, array in run(emit_qdq(context.model, frozen, cpu()), feeds).items():
        reference = want[output].numpy()
        # One code of the last layer's input may differ where float32 sums end half-way.
        assert np.abs(array - reference).max() <= 0.05 * np.abs(reference).max()
    assert not list(tmp_path.glob("distillation-*.pt"))


def test_training_that_gets_worse_leaves_the_plan(tmp_path):
    plan, context = setup("residual", tmp_path)
    result = Distillation(epochs=1, lr=50.0, batch=16)(plan, context)
    assert result.metrics["epoch"] == 0
    assert plan_digest(result.plan) == plan_digest(plan)


def test_labels_are_not_read_and_bytes_are_equal(tmp_path, monkeypatch):
    plan, context = setup("conv_bn_relu", tmp_path / "a")
    labelled = replace(context.calibration, labels=np.arange(128) % 5)
    context = replace(context, calibration=labelled)
    seen, original = [], distillation.train

    def recorded(network, teacher, data, validation, *rest):
        seen.append((data.labels, validation.labels))
        return original(network, teacher, data, validation, *rest)

    monkeypatch.setattr(distillation, "train", recorded)
    digests = {plan_digest(STEP(plan, context).plan) for _ in range(2)}
    assert len(digests) == 1 and seen == [(None, None)] * 2


def test_images_are_changed_where_they_are_colour_images(tmp_path):
    _, context = setup("conv_bn_relu", tmp_path)  # [N, 3, 12, 12]
    settings = Distillation()._settings(context, 96)
    assert settings.flip and settings.crop == 0 and settings.batch == 16
    assert settings.cutmix == 0.5
    specs = {"x": replace(context.inputs["x"], shape=("N", 3, 224, 224))}
    assert Distillation()._settings(replace(context, inputs=specs), 96).crop == 14
    plain = Distillation(augment=False)._settings(context, 96)
    assert not plain.flip and plain.cutmix == 0
    _, gray = setup("residual", tmp_path)  # [N, 4, 8, 8]
    assert not Distillation()._settings(gray, 96).flip


def test_code_books_are_refused(tmp_path):
    plan, context = setup("residual", tmp_path)
    name = next(site.weight for site in plan.sites.values() if site.weight)
    grid = plan.qparams(name)
    book = Codebook(grid.spec, grid.scale, grid.zero_point, np.arange(-3, 4, dtype=np.float32))
    with pytest.raises(
        RecipeError, match=r"ptq: distillation: .* code book.*expected bits\.scheme: uniform"
    ):
        STEP(replace(plan, grids={**plan.grids, plan.grid_of[name]: book}), context)


def test_scales_of_a_fixed_form_are_trained_in_it(tmp_path):
    plan, context = setup("residual", tmp_path)
    grids = {name: in_form(grid) for name, grid in plan.grids.items()}
    fixed = replace(plan, grids=grids)
    result = STEP(fixed, context)
    assert result.metrics["epoch"] > 0 and context.loss(result.plan) < context.loss(fixed)
    scales = [np.ravel(grid.scale) for grid in result.plan.grids.values() if hasattr(grid, "scale")]
    mantissas = np.frexp(np.concatenate(scales))[0]
    assert (mantissas == 0.5).all()


def in_form(grid):
    """Return a grid whose scales are powers of two; a spec as it is."""
    if not isinstance(grid, QuantParams):
        return grid
    scale = np.exp2(np.round(np.log2(grid.scale))).astype(np.float32)
    return replace(grid, spec=replace(grid.spec, scale_kind="power_of_two"), scale=scale)


def test_an_output_without_gradients_is_refused(tmp_path):
    net = Net(opset=17)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    x = net.add("ArgMax", net.add("Flatten", net.add("GlobalAveragePool", x)), axis=1, keepdims=0)
    plan, context = calibrated(net.output(net.add("Cast", x, to=1, out="y")), FOUR, folder=tmp_path)
    with pytest.raises(UnsupportedError, match='cannot train towards "y"'):
        STEP(plan, context)


def test_large_samples_are_taken_fewer_at_a_time(tmp_path, monkeypatch):
    _, context = setup("residual", tmp_path)
    elements = computed_elements(context.model.graph)
    for rows, expected in ((0.5, 1), (3.5, 3), (99, 16)):
        monkeypatch.setattr(distillation, "MAX_ELEMENTS", int(rows * elements))
        settings = STEP._settings(context, 96)
        assert settings.batch == expected
        assert settings.lr == pytest.approx(STEP.lr * expected / STEP.batch)


def test_it_ends_three_epochs_after_the_best(tmp_path, monkeypatch):
    plan, context = setup("residual", tmp_path)
    histories, original = [], distillation.train

    def recorded(*words):
        histories.append(original(*words)[0])
        return histories[-1], None

    monkeypatch.setattr(distillation, "train", recorded)
    result = Distillation(epochs=6, lr=0.3, batch=16)(plan, context)  # far too large a rate
    assert [epoch.number for epoch in histories[0]] == [0, 1, 2, 3]
    assert result.metrics["epoch"] == 0
