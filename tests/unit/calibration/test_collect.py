"""One pass over calibration data: what is seen, what is refused, and that memory does not grow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import Net, bind, cpu, feeds_for

from qtool.annotation.annotator import annotate
from qtool.calibration import CALIBRATORS, MSE, MinMax, Percentile
from qtool.calibration.batch_size import BATCH_ELEMENTS, batch_size, held_elements
from qtool.calibration.collect import (
    PassOptions,
    choose_grids,
    collect,
    collect_shard,
    merge_early,
    merge_shards,
    observed_values,
)
from qtool.calibration.statistics import Stats, summarize
from qtool.errors import DataError
from qtool.quant.bit_widths import Bits
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, QuantSpec
from qtool.runtime.executor import Executor
from qtool.weights.grids import weight_grids

RNG = np.random.default_rng(2)


def network() -> Net:
    """A fed value, a constant operand and computed values: Conv, Relu, Add, MaxPool."""
    net = Net(opset=21)
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4), out="a")
    x = net.add("Add", x, net.const(RNG.normal(0, 1, (1, 4, 1, 1)), "shift"), out="b")
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], out="p")
    return net.output(net.conv(x, 4, 2, out="y"))


@pytest.fixture
def model(tmp_path) -> ir.Model:
    graph = network().load(tmp_path)
    bind(graph, feeds_for(graph))
    return graph


def batches(data: np.ndarray, rows: int) -> list[dict[str, np.ndarray]]:
    return [{"x": data[k : k + rows]} for k in range(0, len(data), rows)]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)


NAMES = ("x", "shift", "a", "b", "y")


@pytest.mark.parametrize("rows", [1, 3, 7, 24])
def test_batch_size_changes_nothing(model, rows):
    data = images(24)
    whole = collect(model, NAMES, batches(data, 8), histograms=True, threads=1)
    stats = collect(model, NAMES, batches(data, rows), histograms=True, threads=1)
    for name in NAMES:
        a, b = whole[name], stats[name]
        assert (a.count, a.exponent, a.first) == (b.count, b.exponent, b.first)
        # Another batch size sums in another order inside a convolution: float32 rounding.
        assert (a.lo, a.hi) == pytest.approx((b.lo, b.hi), rel=1e-6, abs=1e-6)
        assert np.abs(a.histogram - b.histogram).sum() <= 0.002 * a.count


def test_statistics_are_those_of_the_float_network(model):
    data = images(10)
    stats = collect(model, NAMES, batches(data, 4), histograms=True, threads=1)
    want = Executor(model)({"x": data}, outputs=["a", "b", "y"])
    for name, tensor in {"x": data, **{k: v.numpy() for k, v in want.items()}}.items():
        values = tensor.astype(np.float64)
        assert stats[name].count == values.size
        assert (stats[name].lo, stats[name].hi) == pytest.approx(
            (values.min(), values.max()), abs=1e-5
        )
        counts, _ = np.histogram(values, stats[name].edges)
        assert np.abs(counts - stats[name].histogram).sum() <= 0.01 * values.size  # float32 sums


def test_a_constant_is_seen_once(model):
    shift = model.graph.initializers["shift"].const_value.numpy()
    for rows in (2, 5):
        seen = collect(model, ("shift",), batches(images(10), rows), histograms=True)["shift"]
        assert (seen.lo, seen.hi, seen.count) == (shift.min(), shift.max(), 4)


def test_only_fed_values_can_be_watched(model):
    data = images(6)
    seen = collect(model, ("x",), batches(data, 4), histograms=False)
    assert (seen["x"].lo, seen["x"].hi) == (data.min(), data.max())
    assert len(seen["x"].histogram) == 0


def test_what_is_observed(model):
    """The values that decide grids: not weights, not biases, not what a MaxPool passes on."""
    plan = annotate(model, cpu(), Bits())
    assert set(observed_values(model, plan)) == {"x", "a", "shift", "b", "y"}
    assert "p" in plan.grid_of


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("histograms", [True, False])
def test_a_bad_value_is_named_with_its_sample(model, bad, histograms):
    data = images(12)
    data[9, 1, 2, 3] = bad
    with pytest.raises(DataError) as error:
        collect(model, ("x", "a"), batches(data, 2), histograms=histograms)
    assert 'the value "x" is NaN or infinite for the sample row 1 of batch 5' in str(error.value)
    assert "look for" in str(error.value)


def test_a_division_by_zero_inside_is_named(tmp_path):
    net = Net(opset=21)
    x = net.add("Reciprocal", net.input("x", "N", 4), out="inverse")
    net.output(net.add("MatMul", x, net.weight(4, 3), out="y"))
    model = net.load(tmp_path)
    data = np.ones((6, 4), np.float32)
    data[5, 0] = 0
    with pytest.raises(
        DataError, match='"inverse" is NaN or infinite for the sample row 1 of batch 3'
    ):
        collect(model, ("x", "inverse"), batches(data, 2), histograms=True)


def test_no_data_is_an_error(model):
    with pytest.raises(DataError, match="no calibration sample; check the folder and count"):
        collect(model, ("x", "a"), [], histograms=True)


def test_the_samples_of_a_batch_are_counted_as_the_caller_says(model):
    data = images(6)

    def extremes(count):
        stats = collect(
            model, ("x",), batches(data, 3), histograms=False, samples=lambda batch: count
        )
        return stats["x"].extremes

    assert (extremes(1).samples, extremes(3).samples) == (2, 6)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_gives_every_value_a_grid(model, name):
    plan = annotate(model, cpu(), Bits())
    names = observed_values(model, plan)
    stats = collect(model, names, batches(images(8), 4), histograms=True)
    grids = weight_grids(model, choose_grids(plan, stats, CALIBRATORS[name]()))
    biases = {site.bias for site in plan.sites.values()}
    for value, grid in grids.grid_of.items():
        assert value in biases or isinstance(grids.grids[grid], QuantParams)
    assert grids.params("p") is grids.params("b")


def test_values_on_one_grid_share_their_statistics():
    spec = QuantSpec(8, False, False)
    plan = QuantPlan(grid_of={"a": "g", "b": "g", "c": "c"}, grids={"g": spec, "c": spec})
    stats = {"a": Stats(-1, 2), "b": Stats(-3, 1), "c": Stats(0, 1)}
    grids = choose_grids(plan, stats, MinMax())
    assert float(grids.params("a").scale) == pytest.approx(5 / 255)
    assert float(grids.params("c").scale) == pytest.approx(1 / 255)


@pytest.mark.parametrize("calibrator", [MinMax(), MSE(), Percentile()])
def test_a_constant_that_is_not_finite_is_named(calibrator):
    plan = QuantPlan(grid_of={"shift": "shift"}, grids={"shift": QuantSpec(8, False, False)})
    stats = {"shift": summarize(np.array([1, np.nan], np.float32), True, 0)}
    with pytest.raises(DataError, match='the value "shift"'):
        choose_grids(plan, stats, calibrator)


def test_weights_get_min_max_grids_per_channel(model):
    plan = weight_grids(model, annotate(model, cpu(), Bits()))
    for site in plan.sites.values():
        if site.weight:
            array = model.graph.initializers[site.weight].const_value.numpy()
            want = np.abs(array).max((1, 2, 3)) / 127
            np.testing.assert_allclose(plan.params(site.weight).scale, want, rtol=1e-6)
    plan = weight_grids(model, annotate(model, cpu(), Bits(granularity="tensor")))
    assert all(plan.params(s.weight).scale.shape == () for s in plan.sites.values() if s.weight)


def test_weights_that_are_not_finite_are_named(model):
    plan = annotate(model, cpu(), Bits())
    site = next(s for s in plan.sites.values() if s.weight)
    value = model.graph.initializers[site.weight]
    array = value.const_value.numpy().copy()
    array[0, 0, 0, 0] = np.nan
    value.const_value = ir.tensor(array)
    with pytest.raises(DataError, match=f'the weights "{site.weight}" of node "{site.name}"'):
        weight_grids(model, plan)


def test_batches_are_as_large_as_memory_allows(model):
    names = ("a", "b", "y")
    each = 2 * 4 * 64 + 2 * 16
    assert held_elements(model, names) == each
    assert batch_size(each, 10_000) == 64
    assert batch_size(each, 5) == 5
    assert batch_size(each, 0) == 1
    wide = Net(opset=21)
    x = wide.input("x", 1, 3, 512, 512)
    wide.output(wide.add("Relu", wide.conv(x, 3, 8), out="y"))
    rows = batch_size(held_elements(wide.model(), ("y",)), 100)
    assert rows == BATCH_ELEMENTS // (8 * 512 * 512) == 2
    assert each * 64 < BATCH_ELEMENTS


MEMORY = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from models import Net
from qtool.calibration.collect import collect
net = Net(opset=21)
x = net.add("Relu", net.conv(net.input("x", "N", 3, 64, 64), 3, 16), out="a")
net.output(net.add("Relu", net.conv(x, 16, 16), out="y"))
model = net.load(Path({folder!r}))
rng = np.random.default_rng(0)
kept = []
def batches(count):
    for _ in range(count):
        batch = rng.normal(size=(8, 3, 64, 64)).astype(np.float32)
        if {keep}:
            kept.append(batch)
        yield {{"x": batch}}
collect(model, ("x", "a", "y"), batches(int(sys.argv[1])), histograms=True, threads=1)
# Not ru_maxrss: it starts with the size of the process that called.
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""


def peak(count: int, folder, keep: bool = False) -> int:
    code = MEMORY.format(tests=str(Path(__file__).parents[2]), folder=str(folder), keep=keep)
    words = [sys.executable, "-c", code, str(count)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_batches(tmp_path):
    """15 times the batches, each 4 MB with its activations: the same peak; a twin that grows."""
    few = peak(20, tmp_path)
    assert peak(300, tmp_path) < 1.05 * few
    assert peak(300, tmp_path, keep=True) > 1.2 * few


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_shards_of_a_pass_merge_to_its_bytes(processes):
    """Every estimator, also those that depend on the order of the samples; a shard may be empty."""
    model, data = network().model(), images(23)
    bind(model, feeds_for(model))
    whole = collect(model, NAMES, batches(data, 6), histograms=True, threads=1)
    numbered = list(enumerate(batches(data, 6), 1))
    shards = [
        collect_shard(model, NAMES, numbered[k::processes], PassOptions(True, 1), half=3)
        for k in range(processes)
    ]
    merged = merge_shards(model, NAMES, shards)
    for name in NAMES:
        assert merged[name].extremes == whole[name].extremes
        for calibrator in (entry() for entry in CALIBRATORS.values()):
            spec = QuantSpec(4, False, False)
            grids = [calibrator(stats[name], spec) for stats in (merged, whole)]
            assert grids[0].scale.tobytes() == grids[1].scale.tobytes()
            assert grids[0].zero_point == grids[1].zero_point
    first = collect(model, NAMES, batches(data, 6)[:2], histograms=True, threads=1)
    for name, part in merge_early(NAMES, shards).items():
        if name != "shift":  # a constant
            assert (part.lo, part.hi, part.count) == (
                first[name].lo,
                first[name].hi,
                first[name].count,
            )
            assert np.array_equal(part.histogram, first[name].histogram)
