"""``qtool qat``: what it learns by and how it tells of it, from the command line."""

import json

import pytest
from test_cli_qat import folder, qtool

assert folder  # a fixture

LOSSES = """
import torch

def half(output, labels):
    print("on stderr")
    return torch.nn.functional.cross_entropy(output, labels) / 2
"""


def asked(folder, out, *settings):
    words = [word for setting in settings for word in ("--set", setting)]
    return qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / out, *words)


def report(folder, out):
    return json.loads((folder / out / "report.json").read_text())


def test_a_loss_of_ones_own_needs_trust_and_trains(folder):
    (folder / "my_loss.py").write_text(LOSSES)
    words = ["--set", "qat.loss=my_loss:half", "--set", "qat.epochs=2"]
    done = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "o1", *words)
    assert done.returncode == 2 and "add --trust-code" in done.stderr
    assert not (folder / "o1").exists() and "calibrate" not in done.stderr
    words = ["--trust-code", *words]
    done = qtool("qat", "--recipe", folder / "r.yaml", "--out", folder / "o1", *words)
    assert done.returncode == 0, done.stderr
    assert "on stderr" in done.stderr and "on stderr" not in done.stdout
    assert asked(folder, "o2", "qat.epochs=2").returncode == 0
    own, usual = (report(folder, k)["data"]["training"]["epochs"] for k in ("o1", "o2"))
    assert own[1]["loss"] == pytest.approx(usual[1]["loss"] / 2, rel=0.2)
    again = qtool("qat", "--recipe", folder / "o1/recipe.yaml", "--out", folder / "o3", *words)
    assert again.returncode == 0, again.stderr
    assert report(folder, "o3")["output"] == report(folder, "o1")["output"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("qat.loss=focal", "expected module:function"),
        ("qat.loss=not_there:focal", "add --trust-code"),
    ],
)
def test_what_is_refused_before_any_work(folder, setting, said):
    done = asked(folder, "no", setting)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert said in done.stderr and not (folder / "no").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("qat.distill={weight: 1}", "qat.loss none"),
        ("qat.label_smoothing=0.1", "belongs to cross entropy"),
    ],
)
def test_what_a_loss_of_ones_own_does_not_go_with(folder, setting, said):
    (folder / "my_loss.py").write_text(LOSSES)
    done = asked(folder, "no", "qat.loss=my_loss:half", setting)
    assert done.returncode == 2 and said in done.stderr, done.stderr
