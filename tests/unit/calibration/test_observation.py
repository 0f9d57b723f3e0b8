"""Values summarized inside ONNX Runtime: the limits and elements of the values themselves."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import Net, bind, feeds_for

from qtool.calibration.batch_size import BATCH_ELEMENTS, batch_size, held_elements, pass_elements
from qtool.calibration.collect import collect
from qtool.calibration.observation import SAMPLED, Pooled, Whole, observe
from qtool.runtime import ort_session
from qtool.runtime.ort_options import session_options
from qtool.runtime.ort_session import OrtSession

SIDE = 96


def network(channels: int = 16, side: int = SIDE, op: str = "Relu") -> ir.Model:
    """A large map `a` behind an activation, and an output `y`."""
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, side, side), 3, channels, out="c")
    limits = [net.const(np.float32(v), f"limit{v}") for v in (0, 6)] if op == "Clip" else []
    x = net.add(op, x, *limits, out="a")
    model = net.output(net.conv(x, channels, 2, out="y")).model()
    bind(model, feeds_for(model))
    return model


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 1, (count, 3, SIDE, SIDE)).astype(np.float32)


def outputs(model: ir.Model, names, x: np.ndarray) -> dict[str, np.ndarray]:
    with OrtSession(model, names, 1) as session:
        return session({"x": x})


@pytest.mark.parametrize("histograms", [True, False])
@pytest.mark.parametrize("op", ["Relu", "Clip"])
def test_a_pooled_value_has_the_limits_of_the_value(op, histograms):
    model, x = network(op=op), images()
    observed, kinds = observe(model, ["a"], histograms)
    a = kinds["a"]
    assert isinstance(a, Pooled)
    value = outputs(model, ["a"], x)["a"]
    limits = a.limits(outputs(observed, a.outputs, x), len(x))
    assert np.array_equal(limits, [np.zeros(4), value.reshape(4, -1).max(1)])


def test_a_constant_value_shows_as_constant():
    """Its limits are equal, so that the report names it."""
    model, x = network(), images()
    for value in model.graph.initializers.values():
        if value.const_value.numpy().ndim == 4 and value.shape[0] == 16:
            value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32))
        elif value.shape.numpy() == (16,):
            value.const_value = ir.tensor(np.full(16, 2.5, np.float32))
    observed, kinds = observe(model, ["a"], True)
    limits = kinds["a"].limits(outputs(observed, kinds["a"].outputs, x), len(x))
    assert np.array_equal(limits, np.full((2, 4), 2.5))


def test_its_sampled_elements_are_elements_of_their_channels_and_evenly_spread():
    model, x = network(), images(2)
    observed, kinds = observe(model, ["a"], True)
    value = outputs(model, ["a"], x)["a"]
    seen = kinds["a"].elements(outputs(observed, kinds["a"].outputs, x), 2, 1)
    assert SAMPLED / 2 < seen[0].size <= SAMPLED
    places = set()
    for channel in range(16):
        index = {v: k for k, v in enumerate(value[0, channel].reshape(-1).tolist()) if v}
        seen_at = [index[v] for v in seen[0, channel].reshape(-1).tolist() if v]
        assert len(seen_at) == len(set(seen_at))
        places |= set(seen_at)
    rows, columns = np.divmod(sorted(places), SIDE)
    for axis in (rows, columns):
        assert len(set(axis.tolist())) == SIDE  # no row or column is left out
        assert axis.mean() == pytest.approx((SIDE - 1) / 2, abs=1.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("histograms", [True, False])
@pytest.mark.parametrize("place", [(0, 0), (41, 7), (SIDE - 1, SIDE - 1)])
def test_an_element_that_is_not_finite_shows_wherever_it_is(bad, histograms, place):
    model, x = network(), images()
    x[2, 1, place[0], place[1]] = bad
    observed, kinds = observe(model, ["a"], histograms)
    limits = kinds["a"].limits(outputs(observed, kinds["a"].outputs, x), len(x))
    assert np.isfinite(limits).all(0).tolist() == [True, True, False, True]


def test_the_histogram_of_sampled_elements_is_that_of_all():
    model, data = network(), images(12)
    stats = collect(model, ("a",), [{"x": data[k : k + 4]} for k in (0, 4, 8)], histograms=True)
    value = outputs(model, ["a"], data)["a"].astype(np.float64)
    assert stats["a"].hi == value.max()
    for q in (0.5, 0.9, 0.99, 0.999):
        mass = np.cumsum(stats["a"].histogram) / stats["a"].count
        seen = stats["a"].edges[1:][np.searchsorted(mass, q)]
        assert seen == pytest.approx(np.quantile(value, q), abs=0.05 * value.max())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (network(), "c"),  # two-sided
        (network(), "x"),  # fed
        (network(channels=24), "a"),  # not computed in blocks of 16
        (network(side=32), "a"),  # small
        (network(op="Sigmoid"), "a"),
    ],
    ids=["two-sided", "fed", "channels", "small", "sigmoid"],
)
def test_other_values_are_returned_whole(model, name):
    observed, kinds = observe(model, [name], True)
    assert kinds == {name: Whole(name)}
    assert observed is model


def test_maps_of_medium_size_are_summarized_where_only_limits_are_read():
    _, with_histograms = observe(network(side=32), ["a"], True)
    _, limits_alone = observe(network(side=32), ["a"], False)
    assert isinstance(with_histograms["a"], Whole) and isinstance(limits_alone["a"], Pooled)


def test_the_model_is_not_changed():
    model = network()
    before = [node.name for node in model.graph], list(model.graph.initializers)
    observed, _ = observe(model, ["a"], True)
    assert ([node.name for node in model.graph], list(model.graph.initializers)) == before
    assert len(list(observed.graph)) == len(before[0]) + 2


def test_a_pooled_value_counts_in_a_batch_with_what_is_returned_of_it():
    model, value, output = network(), 16 * SIDE * SIDE, 2 * SIDE * SIDE
    assert batch_size(held_elements(model, ["a", "y"]), 100) == BATCH_ELEMENTS // (value + output)
    # Its elements bound the batch where they are more than everything that is returned.
    assert SAMPLED + 16 + output < value
    assert batch_size(pass_elements(model, ["a", "y"]), 100) == BATCH_ELEMENTS // value
    assert batch_size(pass_elements(model, ["a", "c"]), 100) == BATCH_ELEMENTS // (
        value + SAMPLED + 16
    )
    assert batch_size(pass_elements(model, ["a", "c"]), 3) == 3


def test_values_are_summarized_before_the_next_layer_runs(tmp_path, monkeypatch):
    """The summaries of a value read it from the cache, and its memory is free afterwards."""
    net = Net(opset=21)
    x = net.conv(net.input("x", "N", 3, SIDE, SIDE), 3, 16)
    for name in "abcd":
        x = net.conv(net.add("Relu", x, out=name), 16, 16, out=f"{name}_next")
    model = net.output(x).model()
    bind(model, feeds_for(model))
    observed, kinds = observe(model, "abcd", False)

    def profiling(threads: int, level: str):
        options = session_options(threads, level)
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        return options

    monkeypatch.setattr(ort_session, "session_options", profiling)
    names = [name for kind in kinds.values() for name in kind.outputs]
    with OrtSession(observed, names, 1, in_order=True) as session:
        session({"x": images(1)})
        events = json.loads(Path(session._session.end_profiling()).read_text())
    ran = [e["args"]["op_name"] for e in events if e["name"].endswith("kernel_time")]
    letters = {"Conv": "C", "GlobalMaxPool": "p", "GlobalAveragePool": "p"}
    assert "".join(letters.get(op, "") for op in ran) == "CppCppCppCppC"
