"""TensorBoard's event files say what the history says, also after an interruption."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import run

from qtool.qat.optimizer import rates
from qtool.qat.settings import Epoch, Settings
from qtool.qat.tensorboard_log import STEPS_PER_POINT, TensorBoardLog


def events(folder) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def near(pairs):
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in pairs]


def test_the_file_holds_the_history(tmp_path):
    _, history = run(tmp_path, 3, board=tmp_path / "b")
    found = events(tmp_path / "b")
    steps = 200 // 32
    assert found["score"] == near([(e.number * steps, e.score) for e in history])
    assert found["loss/epoch"] == near([(e.number * steps, e.loss) for e in history[1:]])
    settings = Settings(epochs=3, lr=0.02)
    want = [rates(settings, e.number - 1 / steps) for e in history[1:]]
    assert [v for _, v in found["rate/weights"]] == pytest.approx([r[0] for r in want])
    assert [v for _, v in found["rate/scales"]] == pytest.approx([r[2] for r in want])
    assert [step for step, _ in found["loss/step"]] == [STEPS_PER_POINT]  # of 18 steps
    one, two = (e.loss for e in history[1:3])
    assert min(one, two) * 0.5 < found["loss/step"][0][1] < max(one, two) * 1.5


def test_steps_are_means_in_order(tmp_path):
    board = TensorBoardLog(tmp_path / "b", [], 25, Settings(epochs=2))
    for at in range(1, 51):
        board.step(at, torch.tensor(float(at), requires_grad=True))
        if at % 25 == 0:
            board.epoch(Epoch(at // 25, 1.0, 2.0, 0.1))
    board.close()
    want = [(10, 5.5), (20, 15.5), (30, 25.5), (40, 35.5), (50, 45.5)]
    assert events(tmp_path / "b")["loss/step"] == want


def test_what_an_interrupted_epoch_wrote_is_taken_back(tmp_path):
    settings, epochs = (
        Settings(epochs=3),
        [Epoch(k, 1.0 if k else None, float(k), 0.1) for k in range(4)],
    )
    first = TensorBoardLog(tmp_path / "b", [], 20, settings)
    for epoch in epochs[:2]:
        first.epoch(epoch)
    for at in range(21, 36):
        first.step(at, torch.tensor(9.0))
    first.close()  # interrupted in the second epoch
    assert (30, 9.0) in events(tmp_path / "b")["loss/step"]
    again = TensorBoardLog(tmp_path / "b", epochs[:2], 20, settings)
    for at in range(21, 41):
        again.step(at, torch.tensor(3.0))
    again.epoch(epochs[2])
    again.close()
    found = events(tmp_path / "b")
    assert found["loss/step"] == [(30, 3.0), (40, 3.0)]
    assert found["score"] == [(0, 0.0), (20, 1.0), (40, 2.0)]


def test_a_new_start_replaces_and_an_old_history_is_told(tmp_path):
    settings, history = (
        Settings(epochs=3),
        [Epoch(k, 1.0 if k else None, float(k), 0.1) for k in range(3)],
    )
    TensorBoardLog(tmp_path / "b", history, 10, settings).close()
    assert [step for step, _ in events(tmp_path / "b")["score"]] == [0, 10, 20]
    board = TensorBoardLog(tmp_path / "b", [], 10, settings)
    board.epoch(Epoch(0, None, 7.0, 0.1, 0.25, 0.5))
    board.close()
    found = events(tmp_path / "b")
    assert found["score"] == [(0, 7.0)] and "loss/epoch" not in found
    assert found["share/oscillating"] == [(0, 0.25)] and found["share/frozen"] == [(0, 0.5)]
