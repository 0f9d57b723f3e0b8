"""The parts of the training loss: what it is made of, and a loss of the user's own."""

import pickle

import numpy as np
import pytest
import torch
from test_trainer import dataset, run

from qtool.data import Dataset
from qtool.errors import RecipeError
from qtool.qat.custom_loss import CustomLoss, custom_loss
from qtool.qat.loss import Loss, valid_labels
from qtool.qat.settings import Settings

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

    outputs = ("y",)

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def __call__(self, feeds, more=()):
        return {"y": self.scores}


def loss_of(scores, taught, labels, **settings) -> float:
    made = Loss(Network(scores), lambda feeds, more: {"y": taught}, Settings(epochs=1, **settings))
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
