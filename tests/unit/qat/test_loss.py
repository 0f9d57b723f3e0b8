"""The parts of the training loss: what it is made of, and a loss of the user's own."""

import pickle

import numpy as np
import pytest
import torch
from models import Net, feeds_for
from onnx import TensorProto, helper
from test_fake_quant_model import planned
from test_trainer import dataset, run

from qtool.data import Dataset
from qtool.errors import RecipeError
from qtool.qat.custom_loss import CustomLoss, custom_loss
from qtool.qat.fake_quant_model import QatNetwork
from qtool.qat.loss import Loss, distillation, float_teacher, valid_labels
from qtool.qat.quantizers.lsq import LSQ
from qtool.qat.settings import Settings
from qtool.quant.bit_widths import Bits
from qtool.runtime.executor import Executor

CODE = """
import torch

def squares(output, labels):
    return (output - torch.nn.functional.one_hot(labels, output.shape[1])).square().mean()

def everything(output, labels, *, teacher, outputs):
    assert list(outputs) == ["y"] and outputs["y"] is output and not teacher.requires_grad
    return (output - teacher).square().mean()

def many(output, labels):
    return output.sum(1)

def number(output, labels):
    return 3.0

def still(output, labels):
    return output.detach().mean()

def broken(output, labels):
    return output[7, 7, 7]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "my_own_losses.py").write_text(CODE)
    return lambda name: custom_loss(f"my_own_losses:{name}", str(tmp_path), True)


class Network:
    """Two classes; what it says is given."""

    outputs, compared = ("y",), "y"

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def __call__(self, feeds, more=()):
        return {"y": self.scores}


def loss_of(scores, taught, labels, **settings) -> float:
    made = Loss(Network(scores), lambda feeds, names: {"y": taught}, Settings(epochs=1, **settings))
    return made({}, labels).item()


def test_the_teacher_has_its_share(own):
    scores = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    taught, labels = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])
    alone = loss_of(scores, taught, labels, loss=own("squares"), teacher=0.0)
    assert alone == pytest.approx(1 / 4)  # one of four numbers is off by 1
    by_teacher = loss_of(scores, taught, labels, teacher=1.0, temperature=2.0)
    both = loss_of(scores, taught, labels, loss=own("squares"), teacher=0.3, temperature=2.0)
    assert both == pytest.approx(0.7 * alone + 0.3 * by_teacher, rel=1e-6)


def test_parameters_get_what_they_are_called(own):
    scores, taught = torch.zeros(2, 2, requires_grad=True), torch.full((2, 2), 3.0)
    assert loss_of(scores, taught, None, loss=own("everything"), teacher=0.0) == 9.0


def test_a_loss_of_torch_itself_will_do():
    scores, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    found = custom_loss("torch.nn.functional:cross_entropy", None, True)
    want = loss_of(scores, None, labels, teacher=0.0)
    assert loss_of(scores, None, labels, teacher=0.0, loss=found) == pytest.approx(want)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("many", r"gave a tensor of shape \[2\]; expected one number"),
        ("number", "gave a float; expected one number"),
        ("still", "gave a number without gradient"),
        ("broken", r"my_own_losses.py:\d+ raised IndexError"),
    ],
)
def test_what_is_no_loss_is_refused_by_name(own, name, said):
    scores = torch.zeros(2, 2, requires_grad=True)
    with pytest.raises(RecipeError, match=f"(?s)my_own_losses:{name}.*{said}"):
        loss_of(scores, None, torch.tensor([0, 1]), loss=own(name), teacher=0.0)


def test_code_needs_trust_and_a_function(tmp_path):
    with pytest.raises(RecipeError, match="add --trust-code"):
        custom_loss("my_own_losses:squares", str(tmp_path), False)
    with pytest.raises(RecipeError, match="there is no module"):
        custom_loss("not_there:squares", str(tmp_path), True)


def test_another_process_gets_the_same_function(own):
    sent = pickle.loads(pickle.dumps(own("squares")))
    assert isinstance(sent, CustomLoss) and sent.digest == own("squares").digest != ""


def test_labels_keep_their_kind_for_a_loss_of_ones_own():
    floats, classes = np.ones((3, 2)), np.array([1, 2], np.int32)
    assert valid_labels(floats, True).dtype == torch.float32 and valid_labels(floats, False) is None
    assert valid_labels(classes, False).tolist() == [1, 2] and valid_labels(None, True) is None


@pytest.mark.parametrize(
    ("outputs", "compared"), [(["classes", "scores"], "scores"), (["selected"], "boxes")]
)
def test_the_loss_reads_what_repair_steps_compare(outputs, compared):
    """Not class numbers, nor the boxes that NonMaxSuppression leaves."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8))
    boxes = net.add("Reshape", net.conv(x, 8, 4), net.const(np.array([0, 64, 4])), out="boxes")
    scores = net.add("Flatten", net.add("GlobalAveragePool", net.conv(x, 8, 64)), out="scores")
    net.add("ArgMax", scores, axis=1, out="classes")
    rows = net.add("Unsqueeze", scores, net.const(np.array([1])))
    net.add("NonMaxSuppression", boxes, rows, net.const(np.array([9])), out="selected")
    for name in outputs:
        kind = TensorProto.FLOAT if name == "scores" else TensorProto.INT64
        net.outputs.append(helper.make_tensor_value_info(name, kind, None))
    model, plan = planned(net, Bits(2, 3))
    network, feeds = QatNetwork(model, plan, LSQ()), feeds_for(model, rows=4)
    loss = Loss(network, float_teacher(model, "cpu"), Settings(epochs=1, teacher=1.0))
    feeds = {name: torch.from_numpy(array) for name, array in feeds.items()}
    value = loss(feeds, None)
    target = Executor(model)(feeds, None, [compared])[compared]
    expected = distillation(network(feeds, [compared])[compared], target, 1.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5) and value > 0
    value.backward()
    assert network.weights["0"].grad.abs().max() > 0


def test_it_trains_on_labels_of_any_shape(tmp_path, own, monkeypatch):
    def to_vectors(count: int, seed: int, labelled: bool = True) -> Dataset:
        data = dataset(count, seed)
        rows = np.eye(5, dtype=np.float64)[data.labels] * 2
        return Dataset(data.names, data.source, data.positions, rows)

    def distance(output, labels):
        assert labels.dtype == torch.float32 and labels.shape == output.shape
        return (output - labels).square().mean()

    monkeypatch.setattr("test_trainer.dataset", to_vectors)
    _, history = run(tmp_path, 4, loss=CustomLoss("tests:distance", None, distance))
    assert max(e.score for e in history) > history[0].score
    assert all(e.score < 0 for e in history)  # minus the loss, for there are no class numbers
