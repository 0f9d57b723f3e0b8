"""Cross-entropy: its lower bound, what it clips, rows that merge in any order, and refusals."""

import numpy as np
import onnx_ir as ir
import pytest
from contexts import calibrated
from models import Net

from qtool.calibration import MSE, CrossEntropy, MinMax
from qtool.calibration.class_scores import MAX_ROWS, ClassScores, has_class_scores
from qtool.calibration.collect import collect
from qtool.calibration.estimators.cross_entropy import ScoreCrossEntropy
from qtool.calibration.statistics import Stats, summarize
from qtool.calibration.supported import check_supported
from qtool.errors import RecipeError
from qtool.graph.queries import by_name
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantSpec, params_from_range

RNG = np.random.default_rng(4)
SCORES = RNG.normal(0, 3, (200, 10)).astype(np.float32)


def seen(scores: np.ndarray) -> Stats:
    from dataclasses import replace

    return replace(summarize(scores, True, 0, len(scores)), scores=ClassScores.of(scores))


def entropy(scores: np.ndarray) -> float:
    p = np.exp(scores - scores.max(1, keepdims=True), dtype=np.float64)
    p /= p.sum(1, keepdims=True)
    return float(-np.mean(np.sum(p * np.log(p), 1)))


def test_sixteen_bits_over_all_scores_reach_the_entropy_of_the_softmax():
    spec = QuantSpec(16, False, False)
    score = ScoreCrossEntropy(SCORES)
    full = score(params_from_range(SCORES.min(), SCORES.max(), spec))
    assert full == pytest.approx(entropy(SCORES), abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_range_is_below_the_bound_and_the_choice_is_no_worse_than_others(bits, symmetric):
    spec, stats = QuantSpec(bits, symmetric, symmetric), seen(SCORES)
    score = ScoreCrossEntropy(SCORES)
    chosen = score(CrossEntropy()(stats, spec))
    for other in (MinMax(), MSE(), MSE(p=2.4)):
        assert entropy(SCORES) <= chosen <= score(other(stats, spec))


def test_very_negative_scores_of_impossible_classes_are_clipped():
    """exp(-60) is no probability: the squared error covers it, the cross-entropy does not."""
    scores = np.concatenate([RNG.normal(0, 2, (200, 5)), RNG.normal(-60, 2, (200, 5))], 1)
    spec, stats = QuantSpec(4, False, False), seen(scores.astype(np.float32))
    assert float(CrossEntropy()(stats, spec).lo) > -30 > float(MSE()(stats, spec).lo)


def test_without_scores_it_is_the_least_squared_error():
    stats, spec = summarize(SCORES, True, 0), QuantSpec(4, False, False)
    own, mse = CrossEntropy()(stats, spec), MSE()(stats, spec)
    assert (own.scale, own.zero_point) == (mse.scale, mse.zero_point)


def test_rows_merge_to_the_same_ones_in_any_order():
    rows = RNG.normal(0, 1, (3 * MAX_ROWS, 4)).astype(np.float32)
    whole = ClassScores.of(rows)
    parts = [ClassScores.of(part) for part in np.array_split(rows, 7)]
    orders = [parts, parts[::-1], [parts[3] + parts[1], parts[0] + (parts[2] + parts[6])]]
    orders[2] += [parts[5], parts[4]]
    for order in orders:
        merged = sum(order, ClassScores())
        assert np.array_equal(merged.rows, whole.rows)
        assert np.array_equal(merged.digests, whole.digests)
    assert len(whole.rows) == MAX_ROWS
    assert len(ClassScores.of(np.zeros((8, 1 << 19), np.float32)).rows) == 2


def network(float_output: bool = False) -> Net:
    net = Net()
    x = net.add("GlobalAveragePool", net.conv(net.input("x", "N", 4, 6, 6), 4, 8))
    return net.output(net.add("Flatten", x, out="y"))


def test_one_pass_collects_the_rows_of_outputs_only():
    _, context = calibrated(network())
    values = by_name(context.model.graph)
    scored = {name for name, value in values.items() if has_class_scores(value)}
    assert scored == {"y"}
    names = tuple(n for n in values if values[n].producer() is not None)
    batches = ({"x": b["x"]} for b in context.calibration.batches(16))
    stats = collect(context.model, names, batches, histograms=True, threads=1)
    assert stats["y"].scores.rows.shape == (context.calibration.count, 8)
    assert all(not len(s.scores.rows) for name, s in stats.items() if name != "y")


def test_a_plan_without_quantized_scores_is_refused():
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    with pytest.raises(RecipeError, match=r"no output \[N, C\] has a grid") as error:
        check_supported(model, QuantPlan(), (), CrossEntropy())
    assert error.value.key == ("calibrate", "method")
