"""Small channels of a last convolution are scaled to its grid, and the function stays."""

import numpy as np
import pytest
from models import Net, cpu, run, sqnr
from onnxruntime import InferenceSession

import qtool
from qtool.graph.output_groups import channel_groups
from qtool.quant.bit_widths import Widths
from qtool.rewrites.rewrite import Samples
from qtool.rewrites.scaling.scale_output_channels import channel_factors, scale_output_channels

RNG = np.random.default_rng(11)
ANCHORS, QUANTITIES, BOXES = 3, 9, 4
CHANNELS = ANCHORS * QUANTITIES


def head(net: Net, x: str, out: str = "", small: float = 0.05) -> str:
    """Boxes, channels 0 to 3 of every anchor, beside scores, around -6 where boxes are small."""
    box = np.tile(np.arange(QUANTITIES) < BOXES, ANCHORS)
    weight = RNG.normal(0, 0.3, (CHANNELS, 6, 1, 1)) * np.where(box, small, 1)[:, None, None, None]
    bias = np.where(box, 0.01, -6.0 * (small < 1))
    return net.add("Conv", x, net.const(weight), net.const(bias), name="head", out=out)


def detector(small: float = 0.05) -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 6))
    y = net.add("Reshape", head(net, x, small=small), net.const(np.array([0, 3, 9, 8, 8])))
    return net.output(net.add("Transpose", y, perm=[0, 1, 3, 4, 2], out="y"))


def images(rows: int = 16) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(0, 1, (rows, 3, 8, 8)).astype(np.float32)}


def samples_of(model, feeds) -> Samples:
    def observe(names, holdout):
        shown = model.clone()
        values = {v.name: v for n in shown.graph for v in n.outputs}
        shown.graph.outputs.extend(v for v in map(values.get, names) if not v.is_graph_output())
        outputs = run(shown, feeds)
        yield {name: outputs[name] for name in names}

    return Samples(observe, lambda node: Widths(8, 8))


def scaled(net: Net, integer: bool = True) -> tuple[object, int]:
    """Apply the rewrite; outputs must stay equal to the bit."""
    model, feeds = net.model(), images()
    before = run(net.model(), feeds)
    count = scale_output_channels(model, lambda node: integer, samples_of(model, feeds))
    after = run(model, feeds)
    assert list(before) == list(after)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    return model, count


def test_known_answers():
    # The grid is [-20, 4]: 0.2 * 24 = 4.8 is the upper limit, and 4.8 / 1 is cut to 4.
    assert channel_factors(np.array([-20.0, -1]), np.array([4.0, 1])).tolist() == [1, 4]
    assert channel_factors(np.array([-8.0, -1]), np.array([8.0, 0.1])).tolist() == [1, 8]
    assert channel_factors(np.array([0.0, 2]), np.array([0.0, 8])).tolist() == [1, 1]
    assert channel_factors(np.array([0.0, 0]), np.array([100.0, 1e-9])).tolist() == [1, 256]
    assert channel_factors(np.zeros(2), np.zeros(2)).tolist() == [1, 1]


def test_a_grid_grows_by_a_fifth_at_most():
    for _ in range(200):
        lower, upper = np.sort(RNG.normal(0, 10 ** RNG.uniform(-2, 2, (7, 1)), (7, 2))).T
        factors = channel_factors(lower, upper)
        low, high = min(lower.min(), 0), max(upper.max(), 0)
        reserve = 0.2 * (high - low)
        assert (factors * upper).max() <= max(high, reserve) * (1 + 1e-6)
        assert (factors * lower).min() >= min(low, -reserve) * (1 + 1e-6)
        assert factors.min() >= 1


def test_boxes_beside_scores_are_scaled_and_named_as_quantities():
    model, count = scaled(detector())
    groups = [(g.axis, g.start, g.stop) for g in channel_groups(model)]
    assert count == 1 and groups == [(4, 0, BOXES), (4, BOXES, QUANTITIES)]


def test_channels_of_one_size_stay():
    model, count = scaled(detector(small=1.0))
    assert count == 0 and channel_groups(model) == ()


def relu_behind() -> Net:
    net = Net()
    y = head(net, net.conv(net.input("x", "N", 3, 8, 8), 3, 6))
    return net.output(net.add("Relu", y, out="y"))


def layer_behind() -> Net:
    net = Net()
    y = net.add("Sigmoid", head(net, net.conv(net.input("x", "N", 3, 8, 8), 3, 6)))
    return net.output(net.add("Conv", y, net.weight(2, CHANNELS, 1, 1), out="y"))


def shared() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 3, 8, 8), 3, 6)
    weight = net.const(RNG.normal(0, 1, (4, 6, 1, 1)) * np.array([[[[0.01]]], *[[[[1.0]]]] * 3]))
    for name in ("a", "b"):
        net.output(net.add("Conv", x, weight, out=name))
    return net


@pytest.mark.parametrize("build", [relu_behind, layer_behind, shared])
def test_other_convolutions_stay(build):
    assert scaled(build())[1] == 0


def test_a_float_convolution_stays():
    assert scaled(detector(), integer=False)[1] == 0


def test_an_output_read_by_two_ops_and_the_graph():
    net = Net()
    y = head(net, net.conv(net.input("x", "N", 3, 8, 8), 3, 6), out="y")
    net.output(y, net.add("Sigmoid", y, out="p"), net.add("Exp", y, out="e"))
    assert scaled(net)[1] == 1


def test_the_file_computes_boxes_four_times_finer(tmp_path):
    net = detector()
    net.load(tmp_path)
    feeds, found = images(), []
    reference = run(net.model(), feeds)["y"]
    for rewrites in (cpu().rewrites, None):
        model = qtool.load(tmp_path / "net.onnx")
        plan = qtool.quantize(model, [images(32)], threads=1, rewrites=rewrites)
        qtool.emit(model, plan, tmp_path / "int8.onnx")
        session = InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
        test = session.run(["y"], feeds)[0]
        parts = (slice(0, BOXES), slice(BOXES, None))
        found.append([sqnr(reference[..., part], test[..., part]) for part in parts])
    (boxes, scores), (boxes_scaled, scores_scaled) = found
    assert boxes_scaled > boxes + 10 and scores_scaled > scores - 2
