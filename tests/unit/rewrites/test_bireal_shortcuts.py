"""Shortcuts around layers of 1-bit activations: which graph they give, and what it computes."""

import numpy as np
import onnx
import pytest
from models import Net, bind, ops, run
from torch_training import train_and_emit

import qtool
from qtool.errors import RecipeError
from qtool.graph.original import original
from qtool.pipeline.search.sensitivity import run_sensitivity
from qtool.pipeline.training.checks import check_rewrites
from qtool.quant.bit_widths import Widths
from qtool.recipe.choice import Choice
from qtool.recipe.loader import recipe_from_keywords
from qtool.rewrites.bireal_shortcuts import bireal_shortcuts
from qtool.rewrites.rewrite import Samples

BINARY = Widths(1, 1)
RNG = np.random.default_rng(3)


def network(bireal: bool = False, activation: str = "Relu") -> Net:
    """Two residual blocks of the same weights, the second with option A; or what becomes of them.

    Args:
        bireal: write the network with a shortcut around each layer, from sum to sum.
        activation: of the float network: Relu, or Clip with limits that are not reached.
    """
    net = Net(opset=21, ir_version=10)

    def relu(x: str) -> str:
        limits = [net.const(0.0), net.const(1e6)] if activation == "Clip" else []
        return net.add(activation, x, *limits)

    x = signed = relu(net.conv(net.input("x", "N", 3, 8, 8), 3, 4, name="first"))
    for c_in, c_out, stride in ((4, 4, 1), (4, 8, 2)):
        short = signed if bireal else x
        if stride == 2:
            ends = [net.const(np.array(v)) for v in ([0, 0], [99, 99], [2, 3], [2, 2])]
            short = net.add("Slice", short, *ends)
            short = net.add("Pad", short, net.const(np.array([0, 2, 0, 0, 0, 2, 0, 0])))
        y = net.conv(x, c_in, c_out, strides=[stride, stride])
        if bireal:
            y = short = net.add("Add", y, short)
        y = net.conv(relu(y), c_out, c_out)
        signed = net.add("Add", y, short)
        x = relu(signed)
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.output(net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y"))


def feeds(rows: int = 16) -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(rows, 3, 8, 8)).astype(np.float32)}


def ready(net: Net):
    model = net.model()
    bind(model, feeds())
    return model


def rewritten(model, widths=lambda node: BINARY) -> int:
    return bireal_shortcuts(model, lambda node: True, Samples(lambda *_: iter(()), widths))


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_each_layer_gets_a_shortcut_that_starts_at_the_sum(activation):
    model, x = ready(network(activation=activation)), feeds()
    assert rewritten(model) == 2
    want = run(network(bireal=True).proto(), x)["y"]
    np.testing.assert_allclose(run(model, x)["y"], want, rtol=1e-4, atol=1e-5)
    assert ops(model).count("Add") == 4


def test_the_network_as_it_was_is_the_teacher():
    model, x = ready(network()), feeds()
    want = run(model, x)["y"]
    assert original(model) is model
    rewritten(model)
    np.testing.assert_array_equal(run(original(model), x)["y"], want)
    assert np.abs(run(model, x)["y"] - want).max() > 0.01 * np.abs(want).max()


@pytest.mark.parametrize("bits", [2, 8, None])
def test_layers_of_other_widths_get_none(bits):
    model = ready(network())
    before = ops(model)
    assert rewritten(model, lambda node: Widths(1, bits)) == 0
    assert ops(model) == before and original(model) is model


def test_a_layer_whose_output_has_another_shape_than_the_shortcut_gets_none():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8))
    y = net.add("Relu", net.conv(x, 8, 4, 1))
    y = net.add("Relu", net.conv(y, 4, 4))
    net.output(net.add("Add", net.conv(y, 4, 8, 1), x, out="y"))
    assert rewritten(ready(net)) == 0


def test_a_value_that_others_read_stays_as_it_is():
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8))
    inner = net.conv(x, 8, 8)
    y = net.conv(net.add("Relu", inner), 8, 8)
    net.output(net.add("Add", y, x, out="y"), net.add("Neg", inner, out="z"))
    assert rewritten(ready(net)) == 0


def test_sums_have_8_bits_and_the_file_is_what_was_trained(tmp_path):
    onnx.save(network().proto(), tmp_path / "net.onnx")
    model = qtool.load(tmp_path / "net.onnx")
    x = feeds(32)["x"]
    ends = {"first": 8, "last": 8}
    bits = {"weights": 1, "activations": 1, "scheme": "binary", "layers": ends}
    plan = qtool.quantize(model, [x], bits=bits, ptq=[], rewrites=["bireal_shortcuts"])
    sites = plan.quantization.sites.values()
    sums = [site for site in sites if site.op == "Add"]
    assert len(sums) == 4
    for site in sums:
        assert all(plan.quantization.spec(name).bits == 8 for name in site.inputs)
    narrow = [site.inputs[0] for site in sites if site.op == "Conv" and site.name != "first"]
    assert [plan.quantization.spec(name).bits for name in narrow] == [1] * 4
    target = run(network().proto(), {"x": x})["y"]
    train_and_emit(model, plan, x, target, 20, 0.01, tmp_path / "q.onnx")


def recipe(tmp_path, **qat):
    onnx.save(network().proto(), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", **feeds())
    content = {
        "model": "net.onnx",
        "calibrate": {"arrays": "x.npz"},
        "rewrite": ["bireal_shortcuts"],
        "qat": {"arrays": "x.npz", **qat},
    }
    return recipe_from_keywords(content, "recipe", tmp_path, files=True)


def test_training_is_required_and_has_no_distance_of_blocks(tmp_path):
    check_rewrites(recipe(tmp_path), train=True)
    with pytest.raises(RecipeError, match=r"rewrite: found bireal_shortcuts.*qtool qat"):
        check_rewrites(recipe(tmp_path), train=False)
    with_blocks = recipe(tmp_path, distill={"weight": 0.5, "blocks": 2.0})
    with pytest.raises(RecipeError, match=r"qat\.distill\.blocks: 2 compares"):
        check_rewrites(with_blocks, train=True)


def test_a_search_and_a_scan_compare_no_untrained_networks(tmp_path):
    searched = recipe(tmp_path).model_copy(update={"ptq": (Choice(name="auto"),)})
    with pytest.raises(RecipeError, match=r"the search compares networks before training"):
        check_rewrites(searched, train=True)
    with pytest.raises(RecipeError, match=r"rewrite: found bireal_shortcuts"):
        run_sensitivity(recipe(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
