"""Auto: the least squared error of its candidates, ties to the simpler one, and its note."""

import numpy as np
import pytest

from qtool.calibration.collect import choose_grids
from qtool.calibration.estimators.auto import CANDIDATES, TIE, Auto
from qtool.calibration.estimators.entropy import Entropy
from qtool.calibration.histogram_error import squared_error
from qtool.calibration.statistics import Stats, summarize
from qtool.calibration.supported import check_supported
from qtool.errors import RecipeError
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantSpec

RNG = np.random.default_rng(9)
DATA = {
    "normal": RNG.normal(0, 1, 15_000),
    "relu": np.maximum(RNG.laplace(0, 1, 15_000), 0),
    "outliers": np.append(RNG.normal(0, 1, 12_000), [90.0, -40.0]),
    "uniform": RNG.uniform(0, 1, 15_000),
}


def seen(values) -> Stats:
    return summarize(np.asarray(values, np.float32), True, 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("values", DATA.values(), ids=DATA)
def test_no_candidate_is_better_by_more_than_a_tie(values, bits):
    stats, spec = seen(values), QuantSpec(bits, False, False)
    score = squared_error(stats)
    name, params = Auto().select(stats, spec)
    errors = {n: score(c(stats, spec)) for n, c in CANDIDATES.items()}
    assert errors[name] == score(params)
    assert score(params) * (1 - TIE) <= min(errors.values())
    simpler = list(CANDIDATES)[: list(CANDIDATES).index(name)]
    assert all(errors[n] > errors[name] for n in simpler)


def test_a_uniform_value_takes_the_simplest():
    assert Auto().select(seen(DATA["uniform"]), QuantSpec(8, False, False))[0] == "minmax"


def test_the_report_says_where_each_estimator_was_chosen():
    spec = QuantSpec(8, False, False)
    names = [f"v{k}" for k in range(6)]
    plan = QuantPlan(grid_of={n: n for n in names}, grids=dict.fromkeys(names, spec))
    stats = {n: seen(DATA["uniform" if k < 5 else "normal"]) for k, n in enumerate(names)}
    (note,) = choose_grids(plan, stats, Auto()).log
    assert note.startswith("estimators with the least squared error of 6 values: ")
    assert "minmax 5 (v0, v1, v2, ...)" in note and "(v5)" in note


def test_an_unsupported_width_is_refused_before_the_pass():
    import onnx_ir as ir

    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    plan = QuantPlan(grid_of={"a": "a"}, grids={"a": QuantSpec(16, True, True)})
    with pytest.raises(RecipeError, match="entropy is defined for 2 to 8 bits") as error:
        check_supported(model, plan, ["a"], Entropy())
    assert error.value.exit_code == 2
