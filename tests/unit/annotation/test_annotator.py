"""The placement rules one by one; whole models are in tests/golden."""

from dataclasses import replace

import pytest
from models import BUILDERS, Net, cpu, rewritten

from qtool.annotation.annotator import annotate
from qtool.annotation.layer_patterns import nodes_matching
from qtool.errors import RecipeError
from qtool.quant.bit_widths import FLOAT, Bits
from qtool.quant.primitives import PerChannel, PerTensor

LONELY = "its neighbours compute in float, so codes would be converted for nothing"


def planned(net: Net, bits: Bits | None = None, target=None):
    return annotate(net.model(), target or cpu(), bits or Bits())


def between(op: str, *operands, **attributes):
    """Conv -> op (named "mid") -> Conv."""
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8, name="first", out="a")
    arrays = ["" if a is None else net.const(a) for a in operands]
    x = net.add(op, x, *arrays, name="mid", out="b", **attributes)
    return net.output(net.conv(x, 8, 4, name="last", out="y"))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_float_node_is_a_site_a_pass_or_has_a_reason(name):
    model = BUILDERS[name]().model()
    rewritten(model)
    plan = annotate(model, cpu(), Bits())
    fused = {n for site in plan.sites.values() for n in site.nodes}
    for node in model.graph:
        assert (node.name in fused) + (node.name in plan.data_movement_ops) + (
            node.name in plan.float_nodes
        ) == 1
    assert list(plan.float_nodes) == [n.name for n in model.graph if n.name in plan.float_nodes]
    assert set(plan.grid_of.values()) == set(plan.grids)


@pytest.mark.parametrize(
    ("op", "operands", "attributes"),
    [
        ("MaxPool", (), {"kernel_shape": [2, 2]}),
        ("Transpose", (), {"perm": [0, 1, 3, 2]}),
        ("DepthToSpace", (), {"blocksize": 1}),
        ("Resize", (None, [1.0, 1.0, 2.0, 2.0]), {"mode": "nearest"}),
        ("Pad", ([0, 0, 1, 1, 0, 0, 1, 1],), {}),
    ],
)
def test_ops_that_move_codes_share_one_grid(op, operands, attributes):
    plan = planned(between(op, *operands, **attributes))
    assert plan.grid_of["a"] == plan.grid_of["b"] and plan.data_movement_ops == {"mid"}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GlobalAveragePool", {}),
        ("AveragePool", {"kernel_shape": [2, 2]}),
        ("LeakyRelu", {}),
        ("Sigmoid", {}),
    ],
)
def test_ops_that_compute_get_a_grid_of_their_own(op, attributes):
    plan = planned(between(op, **attributes))
    assert plan.grid_of["a"] != plan.grid_of["b"] and "mid" in plan.sites


@pytest.mark.parametrize(
    ("op", "operands", "attributes", "why"),
    [
        ("Resize", (None, [1.0, 1.0, 2.0, 2.0]), {"mode": "linear"}, "needs mode = nearest"),
        ("Pad", ([0, 0, 1, 1, 0, 0, 1, 1],), {"mode": "edge"}, "needs mode = constant"),
        ("Pad", ([0, 0, 1, 1, 0, 0, 1, 1], 0.5), {}, "only a constant Pad with zeros"),
        ("HardSwish", (), {}, "onnxruntime-cpu has no integer kernel for HardSwish"),
    ],
)
def test_what_has_no_kernel_stays_float_and_says_why(op, operands, attributes, why):
    plan = planned(between(op, *operands, **attributes))
    assert why in plan.float_nodes["mid"]


@pytest.mark.parametrize(
    ("op", "limits", "absorbed"),
    [
        ("Relu", (), True),
        ("Clip", (0.0, 6.0), True),
        ("Clip", (-1.0, 0.0), True),
        ("Clip", (None, 2.0), True),
        ("Clip", (), True),
        ("Clip", (0.5, 2.0), False),
        ("Clip", (-2.0, -1.0), False),
        ("Tanh", (), False),
    ],
)
def test_an_activation_vanishes_into_the_grid_behind_it(op, limits, absorbed):
    plan = planned(between(op, *limits))
    site = plan.sites["first"]
    assert site.nodes == (("first", "mid") if absorbed else ("first",))
    assert site.output == ("b" if absorbed else "a")
    assert ("a" in plan.grid_of) != absorbed


def test_a_clip_with_computed_limits_is_not_absorbed():
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8, name="first")
    x = net.add("Clip", x, net.const(0.0), net.add("ReduceMax", "x", keepdims=0))
    plan = planned(net.output(net.conv(x, 8, 4, out="y")))
    assert plan.sites["first"].nodes == ("first",)


def test_an_activation_of_a_value_that_others_read_is_not_absorbed():
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8, name="first")
    net.output(net.add("Relu", x, out="y"), net.add("Neg", x, out="z"))
    assert planned(net).sites["first"].nodes == ("first",)


# Concat


def concat(reader: str = "", target=None):
    """Two convolutions, the second through ``middle``, and a Concat."""
    net = Net()
    x = net.input("x", "N", 4, 8, 8)
    a, b = net.conv(x, 4, 4, out="a"), net.conv(x, 4, 4, out="b")
    if reader == "Conv":
        net.output(net.conv(b, 4, 4, out="z"))
    if reader == "output":
        net.output(b)
    if reader == "pool":
        b = net.add("MaxPool", b, kernel_shape=[1, 1], out="b2")
    if reader == "split":
        net.add("Split", b, out="b1 b2", axis=1)
        b = "b2"
        net.output(net.conv("b1", 2, 4, out="z"))
    if reader == "input":
        b = "x"
    c = net.add("Concat", a, b, axis=1, out="c")
    channels = 6 if reader == "split" else 8
    return planned(net.output(net.conv(c, channels, 4, out="y")))


@pytest.mark.parametrize(
    ("reader", "value", "shared"),
    [
        ("", "b", True),
        ("pool", "b", True),
        ("Conv", "b", False),
        ("output", "b", False),
        ("split", "b", False),
        ("input", "x", False),
    ],
)
def test_values_only_a_concat_reads_take_its_grid(reader, value, shared):
    plan = concat(reader)
    assert plan.grid_of["a"] == plan.grid_of["c"]
    assert (plan.grid_of[value] == plan.grid_of["c"]) == shared


# What stays float because of its neighbours


def test_nothing_is_converted_for_nothing():
    net = Net()
    x = net.input("x", "N", 4, 8, 8)
    x = net.add("Relu", net.add("Add", net.add("Tanh", x), x, name="alone"), name="relu")
    x = net.conv(net.add("Exp", x), 4, 4, name="conv")
    net.output(net.add("MaxPool", x, kernel_shape=[2, 2], name="pool", out="y"))
    plan = planned(net)
    assert all(plan.float_nodes[name] == LONELY for name in ("alone", "relu", "pool"))
    assert list(plan.sites) == ["conv"]


def test_a_mean_that_ends_the_network_pulls_its_producers_into_integers():
    net = Net()
    a = net.conv(net.input("x", "N", 4, 8, 8), 4, 8)
    x = net.add("Add", a, net.conv(a, 8, 8), name="sum", out="s")
    net.output(net.add("GlobalAveragePool", x, name="mean", out="y"))
    plan = planned(net)
    assert {"sum", "mean"} <= set(plan.sites) and plan.float_nodes == {}
    assert "s" in plan.grid_of and "y" not in plan.grid_of


def test_shape_reads_no_numbers():
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8)
    net.output(net.add("Reshape", net.conv(x, 8, 8), net.add("Shape", x), out="y"))
    assert set(planned(net).float_nodes.values()) == {LONELY}


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda n: n.add("Gemm", "x", n.weight(4, 4), transA=1), "needs transA = 0, found 1"),
        (lambda n: n.add("Gemm", "x", n.weight(4, 4), alpha=0.5), "alpha is not 1"),
        (lambda n: n.add("Gemm", "x", n.weight(4, 4), n.weight(4), beta=2.0), "beta is not 1"),
        (lambda n: n.add("Gemm", "x", "x"), "its weights are computed, not constant"),
        (lambda n: n.add("Gemm", n.weight(4, 4), n.weight(4, 4)), "its input is a constant"),
        (lambda n: n.add("Gemm", "x", n.weight(4, 4), n.weight(4, 4)), "not a constant vector"),
        (lambda n: n.add("MatMul", "x", n.weight(2, 4, 4)), "its weight is not a matrix"),
    ],
)
def test_linear_layers_without_a_kernel(build, why):
    net = Net()
    net.input("x", 4, 4)
    name = build(net)
    net.output(name)
    (reason,) = planned(net).float_nodes.values()
    assert why in reason


# What the recipe asks for


def test_float_nodes_stay_float_and_take_no_activation_along():
    net = BUILDERS["conv_bn_relu"]()
    model = net.model()
    rewritten(model, floats=frozenset({"Conv3"}))
    plan = annotate(model, cpu(), Bits(layers=dict.fromkeys({"Conv3", "Relu2"}, FLOAT)))
    assert plan.float_nodes["Conv3"] == plan.float_nodes["Relu2"] == "the recipe asks for float"
    assert plan.sites["Conv0"].nodes == ("Conv0",)
    assert not {"Conv3", "Relu2"} & plan.integer_nodes
    assert "c6" not in plan.grid_of


def test_float_everywhere():
    plan = planned(BUILDERS["residual"](), Bits(None, None))
    assert not plan.sites and not plan.grid_of
    assert plan.float_nodes["Conv0"] == "the recipe asks for float"
    assert len(plan.float_nodes) == 8


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_granularity_and_axes(granularity):
    model = BUILDERS["transformer_mlp"]().model()
    rewritten(model)
    plan = annotate(model, cpu(), Bits(granularity=granularity))
    site = plan.sites["MatMul1"]
    expected = [PerChannel(1), PerChannel(0)] if granularity == "channel" else [PerTensor()] * 2
    assert [plan.grids[n].granularity for n in (site.weight, site.bias)] == expected


def test_the_target_decides():
    ops = {k: v for k, v in cpu().ops.items() if k != "Add"}
    plan = planned(BUILDERS["residual"](), target=replace(cpu(), name="mine", ops=ops))
    assert plan.float_nodes["Add5"] == "mine has no integer kernel for Add"


# Patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("first", {"Conv0"}),
        ("last", {"Conv7"}),
        ("op:Add", {"Add5"}),
        ("name:Conv*", {"Conv0", "Conv2", "Conv4", "Conv7"}),
        ("name:Add5", {"Add5"}),
        ("Relu?", {"Relu1", "Relu3", "Relu6"}),
    ],
)
def test_patterns(pattern, names):
    assert nodes_matching(BUILDERS["residual"]().model(), pattern) == names


def test_first_and_last_with_several_inputs_and_branches():
    net = Net()
    a = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 4, name="x1"))
    b = net.conv(net.add("Neg", net.input("z", "N", 4, 8, 8)), 4, 4, name="z1")
    s = net.add("Add", a, b)
    net.output(net.add("Tanh", net.conv(s, 4, 4, name="end"), out="y"), b)
    model = net.model()
    assert nodes_matching(model, "first") == {"x1", "z1"}
    assert nodes_matching(model, "last") == {"end", "z1"}


def test_a_star_matches_slashes():
    net = Net()
    net.output(net.add("Relu", net.input("x", 4), name="/model/head/Relu", out="y"))
    assert nodes_matching(net.model(), "name:*/head/*") == {"/model/head/Relu"}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("op:Convv", 'did you mean "Conv"?'),
        ("name:Con7", 'did you mean "Conv7"?'),
        ("zzzz", "`qtool check` lists the names"),
    ],
)
def test_a_pattern_that_matches_nothing(pattern, hint):
    with pytest.raises(RecipeError, match="matches no node of the model") as caught:
        nodes_matching(BUILDERS["residual"]().model(), pattern)
    assert f'the pattern "{pattern}"' in caught.value.text
    assert caught.value.key == ("bits", "layers", pattern)
    assert hint in str(caught.value)
