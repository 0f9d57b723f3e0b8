"""Blocks of a network, and how far training is from the float network there."""

import numpy as np
import pytest
import torch
from models import Net, feeds_for
from test_fake_quant_model import normed_net, planned
from test_trainer import run

from qtool.errors import RecipeError
from qtool.qat.block_outputs import block_error, block_outputs
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.quantizers.lsq import LSQ
from qtool.quant.bit_widths import Bits
from qtool.runtime.executor import Executor


def plain_net(layers: int) -> Net:
    """Convolutions with a Relu each, then a linear layer; no sum, but of a constant."""
    net = Net(opset=21)
    x = net.input("x", "N", 3, 8, 8)
    for k in range(layers - 1):
        x = net.add("Relu", net.conv(x, 3, 3, name=f"c{k}"), out=f"relu{k}")
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    x = net.add("Gemm", x, net.weight(5, 3), net.weight(5), transB=1)
    return net.output(net.add("Add", x, net.weight(5), out="y"))


def test_sums_end_blocks_behind_their_activation():
    model, plan = planned(normed_net(), Bits(4, 4))
    (name,) = block_outputs(model, plan)
    (relu,) = [n for n in model.graph if n.outputs[0].name == name]
    assert relu.op_type == "Relu" and relu.inputs[0].producer().op_type == "Add"


def test_without_sums_layers_end_blocks():
    model, plan = planned(plain_net(4), Bits(4, 4))
    assert block_outputs(model, plan) == ("relu0", "relu1", "relu2")
    model, plan = planned(plain_net(1), Bits(4, 4))
    assert block_outputs(model, plan) == ()


def test_known_errors():
    want = {"a": torch.tensor([[2.0, 0.0]]), "b": torch.tensor([[1.0, 1.0]])}
    assert block_error(want, want, ["a", "b"]) == 0
    found = {"a": torch.zeros(1, 2), "b": torch.tensor([[1.0, 2.0]])}
    assert block_error(found, want, ["a"]) == 1
    assert block_error(found, want, ["a", "b"]) == pytest.approx((1 + 0.5) / 2)
    nothing = {"a": torch.zeros(1, 2)}
    assert block_error(nothing, nothing, ["a"]) == 0


@pytest.mark.parametrize("batchnorm", ["live", "frozen", "folded"])
def test_values_are_compared_behind_the_norm(batchnorm):
    """At 8 bits and before training every layer's output is the float one's, but for rounding."""
    model, plan = planned(normed_net(), Bits(8, 8))
    network = QatNetwork(model, plan, LSQ(), batchnorm).eval()
    names = [site.output for site in plan.sites.values() if site.weight is not None]
    assert len(network.norms) == (0 if batchnorm == "folded" else 3)
    feeds = {k: torch.from_numpy(v) for k, v in feeds_for(model, seed=1, rows=8).items()}
    with torch.no_grad():
        found = network(feeds, names)
        want = Executor(model)(feeds, None, names)
    assert list(found) == ["y", *(n for n in names if n != "y")]
    for name in names:
        assert float(block_error(found, want, [name])) < 1e-3, name
    torch.testing.assert_close(found["y"], network(feeds)["y"].detach())


def test_blocks_alone_pull_a_network_towards_its_teacher(tmp_path):
    """A factor so large that the labels hardly matter."""

    def distance(network: QatNetwork) -> float:
        feeds = {"x": torch.from_numpy(np.random.default_rng(3).normal(0, 1, (32, 3, 8, 8)))}
        feeds = {k: v.float() for k, v in feeds.items()}
        model, _ = planned(normed_net(), Bits(3, 4))
        with torch.no_grad():
            want = Executor(model)(feeds, None, list(network.blocks))
            return float(block_error(network(feeds, network.blocks), want, network.blocks))

    options = {"lr": 0.002, "batchnorm": "frozen"}
    before, _ = run(tmp_path, 0, "before", **options)
    plain, _ = run(tmp_path, 4, "plain", **options)
    pulled, history = run(tmp_path, 4, "pulled", blocks=50.0, **options)
    assert distance(pulled) < distance(before) and distance(pulled) < 0.9 * distance(plain)
    assert history[1].loss > 1  # the first step's error counts fifty times


def test_a_network_without_blocks_is_refused():
    from qtool.qat.loss import Loss
    from qtool.qat.settings import Settings

    model, plan = planned(plain_net(1), Bits(4, 4))
    network = QatNetwork(model, plan, LSQ())
    with pytest.raises(RecipeError, match="neither a residual sum nor two"):
        Loss(network, Executor(model), Settings(epochs=1, blocks=0.1))
