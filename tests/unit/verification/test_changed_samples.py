"""Samples that change their class are listed with margins, and drawn as the network reads them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from qtool.data import Dataset
from qtool.data.preprocess import Preprocess
from qtool.report.latency_schema import Latency
from qtool.report.schema import Accuracy
from qtool.verification.changes.samples import SHOWN_SAMPLES, with_changed_samples
from qtool.verification.changes.thumbnails import image_of, thumbnails
from qtool.verification.kernel_times import SLOWEST, with_kernel_times
from qtool.verification.tasks import ProfileResult

BEFORE = np.array([[5.0, 1, 0], [2, 1, 0], [0, 3, 1], [0, 1, 2]])
AFTER = np.array([[4.0, 1, 0], [1, 2, 0], [0, 2, 3], [0, 2, 1.5]])


class Rows:
    """A source of arrays in memory."""

    def __init__(self, images):
        self.images = images

    def stream(self, positions, size):
        for position in positions:
            yield {"x": self.images[[position]], "sr": np.zeros((1, 1), np.float32)}

    def digest(self, position):
        return str(position)


def data(labels=None, classes=None, images=None, preprocess=None):
    names = tuple("abcd")
    source = Rows(np.zeros((4, 1, 2, 2), np.float32) if images is None else images)
    positions = tuple(range(len(names)))
    labels = None if labels is None else np.array(labels)
    return Dataset(names, source, positions, labels, classes, preprocess=preprocess)


def changed(dataset, images=0, before=BEFORE, after=AFTER):
    accuracy = Accuracy(samples=len(before), agreement=25.0)
    return with_changed_samples(accuracy, {"float": before, "quantized": after}, dataset, images)


def test_those_that_became_wrong_come_first_then_by_margin():
    result = changed(data([0, 0, 2, 2], ("cat", "dog", "owl")))
    assert result.changed == 3
    rows = [(s.name, s.label, s.float, s.quantized) for s in result.changed_samples]
    assert rows == [
        ("b", "cat", "cat", "dog"),  # lost, margin 1
        ("d", "owl", "owl", "dog"),  # lost, margin 1
        ("c", "owl", "dog", "owl"),  # gained
    ]
    first = result.changed_samples[0]
    assert (first.margin, first.margin_after, first.thumbnail) == (1.0, -1.0, None)


def test_without_labels_the_margin_alone_orders():
    samples = changed(data()).changed_samples
    assert [(s.name, s.label, s.float) for s in samples] == [
        ("c", None, "1"),
        ("b", None, "0"),
        ("d", None, "2"),
    ]


def test_margins_near_the_end_of_float32_are_computed_and_infinite_ones_absent():
    before = np.tile(np.array([3e38, -3e38, 0], np.float32), (4, 1))
    after = np.tile(np.array([0, np.inf, 0], np.float32), (4, 1))
    first = changed(data(), before=before, after=after).changed_samples[0]
    assert (first.margin, first.margin_after) == (6e38, None)


@pytest.mark.parametrize("outputs", [np.ones((4, 3, 2)), np.ones((4,)), np.ones((4, 1))])
def test_outputs_without_one_class_a_sample_list_nothing(outputs):
    assert changed(data(), before=outputs, after=outputs).changed_samples is None


def test_equal_answers_list_nothing_and_long_lists_are_cut():
    assert changed(data(), after=BEFORE).changed is None
    many = Dataset(tuple(map(str, range(40))), Rows(np.zeros((40, 1, 2, 2))), tuple(range(40)))
    result = changed(many, before=np.eye(2)[[0] * 40], after=np.eye(2)[[1] * 40])
    assert result.changed == 40 and len(result.changed_samples) == SHOWN_SAMPLES


def decoded(uri):
    head, code = uri.split(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB"), int)


def test_images_are_drawn_as_they_were_before_normalising():
    pixels = np.zeros((4, 3, 8, 12), np.float32)
    pixels[:, 0, :, 6:] = 1.0  # the right half is blue in BGR
    settings = Preprocess(mean=[0.2, 0.4, 0.6], std=[0.5, 0.25, 2.0], color="bgr")
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (settings.mean, settings.std))
    dataset = data(images=(pixels - mean) / std, preprocess=settings)
    (uri,) = thumbnails(dataset, [2])
    image = decoded(uri)
    assert image.shape == (64, 96, 3)
    left, right = image[:, :40].mean((0, 1)), image[:, 56:].mean((0, 1))
    assert left.max() < 20 and right[2] > 200 and right[:2].max() < 60
    samples = changed(dataset, images=1).changed_samples
    assert [s.thumbnail is None for s in samples] == [False, True, True]


def test_a_batch_without_one_image_is_none():
    image = np.zeros((1, 4, 4, 3))
    assert image_of({"x": image}).shape == (4, 4, 3)
    assert image_of({"x": image, "y": image}) is None
    assert image_of({"x": np.zeros((1, 7, 4, 4)), "label": np.zeros(1)}) is None


def test_times_are_summed_by_kernel_slowest_first():
    times = {f"conv{k}_token_{k}": 0.1 for k in range(20)} | {"pool": 1.0}
    kernels = dict.fromkeys(times, "QLinearConv") | {"pool": "MaxPool"}
    latency = Latency(threads=1, batch=1, float_ms=4, quantized_ms=3, speedup=1.3, runs=5)
    result = with_kernel_times(latency, ProfileResult(times, kernels))
    assert [(k.op, k.nodes, k.ms) for k in result.kernels] == [
        ("QLinearConv", 20, pytest.approx(2.0)),
        ("MaxPool", 1, 1.0),
    ]
    assert [n.name for n in result.nodes][:2] == ["pool", "conv0"] and len(result.nodes) == SLOWEST
