"""Notes on calibration data, each on data that has the fault and on data that has not."""

import numpy as np
import pytest
from models import Net

from qtool.calibration.collect import collect
from qtool.calibration.statistics import Stats, summarize
from qtool.data.dataset import Dataset
from qtool.data.spool import ArraySource
from qtool.pipeline.checks.calibration_data import half_notes, sample_notes, value_notes


def dataset(count=64, labels=None, classes=None, repeat=0):
    x = np.random.default_rng(0).normal(0, 1, (count, 4)).astype(np.float32)
    x[count - repeat :] = x[0]
    names = tuple(f"sample {k}" for k in range(count))
    return Dataset(names, ArraySource({"x": x}), tuple(range(count)), labels, classes)


def notes_of(net, x):
    model = net.model()
    names = tuple(v.name for v in (*model.graph.inputs, *(n.outputs[0] for n in model.graph)))
    stats = collect(model, names, [{"x": x}], histograms=False, threads=1)
    return value_notes(model, stats)


def test_good_samples_have_no_note():
    assert sample_notes(dataset()) == []
    assert sample_notes(dataset(labels=np.arange(64) % 4)) == []
    assert sample_notes(dataset(labels=np.arange(64) % 40)) == []  # too few for any share


def test_few_samples_are_called_out():
    (note,) = sample_notes(dataset(31))
    assert note.startswith("31 calibration samples: with fewer than 32")


def test_repeated_samples_are_counted_and_named():
    (note,) = sample_notes(dataset(repeat=3))
    assert "3 of 64 calibration samples repeat another one (first: sample 0)" in note


def test_missing_classes_are_named():
    labels = np.where(np.arange(64) < 62, 0, 1)
    (note,) = sample_notes(dataset(labels=labels, classes=("cat", "dog", "eel")))
    assert "2 of 3 classes have fewer than 5 of 64 calibration samples (dog, eel)" in note


def test_the_last_classes_are_missed_by_the_scores_of_the_network():
    """As in arrays sorted by class, of which only the first samples were given."""
    labels = np.arange(64) % 2
    assert sample_notes(dataset(labels=labels)) == []
    (note,) = sample_notes(dataset(labels=labels), outputs=4)
    assert "2 of 4 classes have fewer than 4 of 64 calibration samples (class 2, class 3)" in note


@pytest.mark.parametrize(("classes", "absent"), [(40, 0), (36, 0), (2, 38)])
def test_absent_classes_are_named_where_there_are_more_than_by_chance(classes, absent):
    """64 samples of 40 classes drawn at random leave out 8."""
    notes = sample_notes(dataset(labels=np.arange(64) % classes), outputs=40)
    assert len(notes) == bool(absent)
    assert not notes or f"{absent} of 40 classes have none of 64 calibration samples" in notes[0]


def test_numbers_that_may_be_no_classes_are_not_counted():
    assert sample_notes(dataset(labels=np.arange(64) * 10**9), outputs=2) == []


def test_dead_and_constant_values_are_named():
    net = Net()
    x = net.add("Relu", net.input("x", "N", 4), out="alive")
    dead = net.add("Mul", x, net.const(np.zeros(4)), out="dead")
    net.output(net.add("Add", dead, net.const(np.full(4, 2.0)), out="same"))
    dead_note, constant_note = notes_of(
        net, np.random.default_rng(0).normal(0, 1, (8, 4)).astype("f")
    )
    assert dead_note == "WARNING: always 0 on all calibration samples: dead"
    assert constant_note == "WARNING: constant on all calibration samples: same = 2"


@pytest.mark.parametrize("first", ["Conv", "Div"])
@pytest.mark.parametrize("largest", [255.0, 1.0])
def test_pixels_that_no_layer_scales_are_called_out(first, largest):
    net = Net()
    x = net.input("x", "N", 3, 8, 8)
    x = x if first == "Conv" else net.add("Div", x, net.const(255.0))
    net.output(net.conv(x, 3, 4, out="y"))
    data = np.random.default_rng(0).uniform(0, largest, (4, 3, 8, 8)).astype(np.float32)
    notes = notes_of(net, data)
    assert bool(notes) == (first == "Conv" and largest == 255)
    if notes:
        assert 'the input "x" has values from 0' in notes[0] and "as pixels have" in notes[0]


def halves(growth: float, histogram: bool = True) -> tuple[dict[str, Stats], dict[str, Stats]]:
    """Statistics of 128 samples and of their first half; the second half is ``growth`` wider."""
    x = np.random.default_rng(0).uniform(-1, 1, (128, 1000)).astype(np.float32)
    x[64:] *= growth
    first, second = (summarize(part, histogram, 0) for part in (x[:64], x[64:]))
    return {"v": first + second}, {"v": first, "fed once": Stats()}


@pytest.mark.parametrize("histogram", [True, False])
def test_half_of_the_samples_is_enough_where_the_ranges_stop_moving(histogram):
    (note,) = half_notes(*halves(1.0, histogram), 64, 128)
    assert note.startswith("64 of the 128 calibration samples would have been enough")
    assert half_notes(*halves(1.3, histogram), 64, 128) == []


def test_few_samples_are_never_called_enough():
    assert half_notes(*halves(1.0), 31, 128) == half_notes(*halves(1.0), 32, 63) == []
