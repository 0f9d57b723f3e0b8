"""int16 saturation of pairs of products: what can happen, what does, and scales that prevent it."""

import platform
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import BUILDERS, Net, bind, cpu, feeds_for, make_grids, make_plan, rewritten

from qtool.calibration import MinMax
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.simulation.integer_network import IntegerNetwork
from qtool.targets.loader import load_target
from qtool.weights.int16_saturation import (
    adds_pairs,
    at_risk,
    excess,
    patches_of,
    safe_scales,
    simulate,
)

NO_VNNI = load_target("onnxruntime-cpu-no-vnni")


def frozen(model: ir.Model, target=None):
    target = target or cpu()
    plan = make_plan(model, target, Bits())
    feeds = [feeds_for(model, seed=1)]
    return freeze(model, make_grids(model, plan, feeds, MinMax(), target=target))


def network(name: str, tmp_path) -> ir.Model:
    model = BUILDERS[name]().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def one_layer(weight: np.ndarray, op: str = "Conv", **attributes):
    """A net of one layer, and its plan with these codes as weights (each exactly a code)."""
    net = Net()
    if op == "Conv":
        group = int(attributes.get("group", 1))
        sizes = [8] * (weight.ndim - 2)
        x = net.input("x", "N", weight.shape[1] * group, *sizes)
    else:
        x = net.input("x", "N", weight.shape[0 if not attributes.get("transB") else 1])
    net.output(
        net.add(op, x, net.const(weight.astype(np.float32)), out="y", name="s", **attributes)
    )
    model = net.model()
    bind(model, feeds_for(model))
    plan = frozen(model)
    site = plan.sites["s"]
    return model, replace(plan, codes={**plan.codes, site.weight: weight.astype(np.int8)})


def risky(weight, op: str = "Conv", **attributes) -> bool:
    model, plan = one_layer(np.asarray(weight), op, **attributes)
    return at_risk(model, plan) == ["s"]


def pair(*numbers: int) -> np.ndarray:
    return np.array(numbers).reshape(1, -1, 1, 1)


def test_known_answers():
    """255 * 127 * 2 = 64770 becomes 32767; weights up to 63 stay below: 2 * 255 * 63 = 32130."""
    full = np.full((1, 2), 255, np.uint8)
    assert excess(full, np.array([[127, 127]], np.int8)).tolist() == [[32767 - 64770]]
    assert excess(full, np.array([[-127, -127]], np.int8)).tolist() == [[-32768 + 64770]]
    assert excess(full, np.array([[63, 63]], np.int8)).tolist() == [[0]]
    assert risky(pair(127, 127)) and risky(pair(-127, -127))
    assert not risky(np.full((4, 8, 3, 3), 63))


def test_the_limit_is_a_sum_of_128():
    assert not risky(pair(127, 1)) and risky(pair(127, 2))
    assert not risky(pair(127, -127))  # opposite signs stay below the larger one


def test_only_weights_of_one_output_channel_pair():
    assert not risky(np.array([0, 127, 127, 0]).reshape(2, 2, 1, 1))


@pytest.mark.parametrize("place", [(0, slice(0, 2), 1, 1), (0, 1, 1, slice(0, 2))])
def test_neighbours_in_either_order_pair(place):
    """Along input channels (channels last), and along the kernel (channels first)."""
    codes = np.zeros((2, 4, 3, 3))
    codes[place] = 127
    assert risky(codes)


def test_depthwise_convolutions_are_never_at_risk():
    codes = np.full((4, 1, 3, 3), 127)
    assert not risky(codes, group=4)
    assert risky(np.full((4, 2, 3, 3), 127), group=2)


@pytest.mark.parametrize(
    ("op", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})]
)
def test_a_matrix_pairs_along_its_reduction(op, attributes):
    together = np.array([[100, 100], [0, 0]])  # one output's, or one input's
    if not attributes:
        together = together.T
    assert risky(together, op, **attributes)
    assert not risky(together.T.copy(), op, **attributes)


def test_machines(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert adds_pairs(["avx2"]) and adds_pairs([])
    assert not adds_pairs(["avx2", "avx_vnni"]) and not adds_pairs(["avx512_vnni"])
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not adds_pairs([])


@given(
    hnp.arrays(np.uint8, (5, 7)),
    hnp.arrays(np.int8, (3, 7), elements=st.integers(-127, 127)),
)
def test_what_is_lost_is_what_pairs_lose_one_by_one(patches, rows):
    lost = excess(patches, rows)
    for p, patch in enumerate(patches.astype(int)):
        for c, row in enumerate(rows.astype(int)):
            products = patch * row
            sums = [products[k] + products[k + 1] for k in range(0, 6, 2)]
            assert lost[p, c] == sum(max(min(s, 32767), -32768) - s for s in sums)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, {"dilations": [2, 1], "group": 2},
     {"auto_pad": "SAME_UPPER"}],
)  # fmt: skip
def test_patches_are_what_the_convolution_multiplies(attributes):
    """Their products with the weights are the convolution's sums, at the chosen places."""
    import torch

    from qtool.runtime.ops.table import options_of, select

    rng = np.random.default_rng(0)
    group = attributes.get("group", 1)
    weight = rng.integers(-127, 128, (6, 4 // group, 3, 2))
    model, _ = one_layer(weight, **attributes)
    node = model.graph.node("s")
    x = rng.integers(0, 256, (2, 4, 8, 8)).astype(np.uint8)
    parts = patches_of(node, x, 3, 0)
    rows = np.moveaxis(weight, 1, -1).reshape(group, 6 // group, -1)
    got = np.concatenate([(p.astype(int) - 3) @ r.T for p, r in zip(parts, rows, strict=True)], 1)
    conv = select(node, 21)
    floats = [torch.from_numpy(a).double() for a in (x.astype(float) - 3, weight.astype(float))]
    want = conv(*floats, **options_of(node, conv)).movedim(1, -1).reshape(-1, 6).numpy()
    chosen = np.random.default_rng(0).permutation(len(want))[: len(got)]
    np.testing.assert_array_equal(got, want[chosen])


def test_a_layer_that_saturates_is_named_with_what_it_loses():
    weight = np.ones((2, 4, 1, 1))
    weight[1, :2] = 127
    model, plan = one_layer(weight)
    bright = {"x": np.full((1, 4, 8, 8), 255, np.uint8)}
    (seen,) = simulate(model, plan, bright)
    assert (seen.name, seen.share) == ("s", 0.5)  # one of two channels
    zero = int(plan.params("x").zero_point)
    assert seen.largest == pytest.approx(32003 / ((255 - zero) * 256))
    assert simulate(model, plan, {"x": np.full((1, 4, 8, 8), 100, np.uint8)}) == []


@pytest.mark.parametrize("name", ["residual", "fire", "conv_bn_relu", "inverted_bottleneck"])
def test_safe_scales_leave_no_risk(name, tmp_path):
    model = network(name, tmp_path)
    before, after = frozen(model), frozen(model, NO_VNNI)
    assert at_risk(model, before) and at_risk(model, after) == []
    for site in after.sites.values():
        if site.weight is None:
            continue
        a, b = before.params(site.weight).scale, after.params(site.weight).scale
        # never finer, and never worse than 7 bits
        assert np.all(b >= a) and np.all(b <= a * 127 / 63 * 1.01)
    feeds = feeds_for(model, seed=4)
    plain, safe = (IntegerNetwork(model, plan)(feeds)["y"] for plan in (before, after))
    assert np.abs(plain - safe).max() < 0.1 * np.abs(plain).max()


def test_scales_that_are_safe_stay(tmp_path):
    """Large weights that are no neighbours lose nothing."""
    weight = np.zeros((1, 4, 3, 3), np.float32)
    weight[0, 0, 0, 0], weight[0, 2, 2, 2] = 1.0, -1.0
    net = Net()
    net.output(net.add("Conv", net.input("x", "N", 4, 8, 8), net.const(weight), out="y"))
    model = net.model()
    bind(model, feeds_for(model))
    plan = frozen(model)
    (site,) = plan.sites.values()
    assert safe_scales(model, plan).grids[site.weight] is plan.grids[site.weight]
