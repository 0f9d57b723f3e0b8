"""F1, mIoU, mAP, PSNR, SSIM, WER, cosine and SQNR: the answers of their libraries, or by hand."""

import sys

import numpy as np
import pytest

from qtool.errors import DataError, RecipeError
from qtool.metrics.confidence import bootstrap_interval
from qtool.metrics.registry import METRICS, find_metric, score_outputs
from qtool.metrics.word_error_rate import edit_distance

RNG = np.random.default_rng(0)


def value(name, outputs, labels):
    """A metric's value; float and quantized outputs are the same, so nothing drops."""
    result = score_outputs(METRICS[name], {"float": outputs, "quantized": outputs}, labels)
    assert not METRICS[name].reference or labels is None
    assert result.drop in (0, None)
    return result.values["quantized"]


def test_f1_is_scikit_learn_s_macro_f1():
    from sklearn.metrics import f1_score

    outputs = RNG.normal(size=(200, 6))
    labels = RNG.integers(0, 4, 200)  # classes 4 and 5 are guessed, never right
    expected = 100 * f1_score(labels, outputs.argmax(1), average="macro")
    assert value("f1", outputs, labels) == pytest.approx(expected, abs=1e-9)  # float64 sums


def test_f1_by_hand_leaves_out_classes_that_never_occur():
    outputs = np.eye(5)[[0, 0, 1]]
    # class 0: tp 1, fp 1, fn 0 -> 2/3; class 1: tp 1, fp 0, fn 1 -> 2/3
    assert value("f1", outputs, np.array([0, 1, 1])) == pytest.approx(200 / 3)


def test_miou_by_hand():
    guess = np.array([[[0, 0], [1, 1]], [[2, 2], [2, 0]]])
    label = np.array([[[0, 1], [1, 1]], [[2, 2], [255, -1]]], np.int16)
    outputs = np.moveaxis(np.eye(4)[guess], -1, 1)
    # pixels 3 and 4 of the second map do not count; class 3 never occurs
    # class 0: 1/2, class 1: 2/3, class 2: 2/2
    assert value("miou", outputs, label) == pytest.approx(100 * (1 / 2 + 2 / 3 + 1) / 3)


def test_miou_pools_pixels_as_scikit_learn_s_jaccard():
    from sklearn.metrics import jaccard_score

    outputs = RNG.normal(size=(5, 3, 8, 8))
    labels = RNG.integers(0, 3, (5, 8, 8))
    expected = 100 * jaccard_score(labels.ravel(), outputs.argmax(1).ravel(), average="macro")
    assert value("miou", outputs, labels) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("shape", [(3, 3, 16, 20), (2, 1, 11, 11)])
def test_psnr_and_ssim_are_scikit_image_s(kind, shape):
    metrics = pytest.importorskip("skimage.metrics")
    target = RNG.uniform(0, 1, shape)
    image = np.clip(target + RNG.normal(0, 0.1, shape), 0, 1)
    top = 1.0
    if kind == "uint8":
        target, image, top = (255 * target).astype(np.uint8), 255 * image, 255.0
    pairs = [(a.astype(np.float64), b) for a, b in zip(target, image, strict=True)]
    expected = np.mean([metrics.peak_signal_noise_ratio(a, b, data_range=top) for a, b in pairs])
    assert value("psnr", image, target) == pytest.approx(expected)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = np.mean(
        [
            metrics.structural_similarity(a, b, channel_axis=0, data_range=top, **options)
            for a, b in pairs
        ]
    )
    assert value("ssim", image, target) == pytest.approx(100 * expected)


def test_equal_images():
    image = RNG.uniform(0, 1, (2, 1, 12, 12))
    assert value("psnr", image, image) == 100 and value("ssim", image, image[:, 0]) == 100


def test_wer_is_jiwer_s():
    jiwer = pytest.importorskip("jiwer")
    guess = RNG.integers(0, 4, (30, 12))
    label = RNG.integers(0, 4, (30, 9))
    for rows in (guess, label):
        for row in rows:
            row[RNG.integers(1, rows.shape[1]) :] = -1
    words = [[" ".join(map(str, row[row >= 0])) for row in rows] for rows in (label, guess)]
    assert value("wer", guess.astype(np.float32), label) == pytest.approx(100 * jiwer.wer(*words))


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("a", "a", 0)],
)
def test_edit_distances(first, second, edits):
    codes = [np.array([ord(c) for c in word], np.int64) for word in (first, second)]
    assert edit_distance(*codes) == edit_distance(*reversed(codes)) == edits


def boxes(*rows, width):
    boxes = np.full((1, 4, width), -1.0)
    for k, row in enumerate(rows):
        boxes[0, k] = row
    return boxes


def test_map_by_hand():
    pytest.importorskip("pycocotools")
    labels = boxes((0, 0, 10, 10, 0), (20, 20, 40, 40, 1), width=5)
    right = boxes((0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.8, 1), width=6)
    assert value("map", right, labels) == pytest.approx(100)
    half = boxes((0, 0, 10, 10, 0.9, 0), (0, 0, 5, 5, 0.99, 7), width=6)
    assert value("map", half, labels) == pytest.approx(50)
    # IoU 0.75: right at the thresholds 0.50 .. 0.75, six of ten, in one of two classes
    loose = boxes((0, 0, 10, 7.5, 0.9, 0), width=6)
    assert value("map", loose, labels) == pytest.approx(30)
    assert value("map", boxes(width=6), labels) == 0
    with pytest.raises(DataError, match="hold no box"):
        value("map", right, boxes(width=5))
    with pytest.raises(DataError, match=r"shape \[4, 6\], expected \[4, boxes, 6\]"):
        value("map", right[0], labels)


def test_map_without_pycocotools_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(DataError, match=r"pip install 'qtool\[detection\]'"):
        value("map", boxes(width=6), boxes(width=5))


def test_cosine_and_sqnr_need_no_labels():
    outputs = {"float": np.array([[3.0, 4.0], [0.0, 0.0]]), "quantized": np.array([[3, 3], [0, 0]])}
    cosine = score_outputs(METRICS["cosine"], outputs, None)
    expected = 100 * (21 / (5 * np.sqrt(18)) + 1) / 2
    assert cosine.values["quantized"] == pytest.approx(expected)
    assert cosine.drop == pytest.approx(100 - expected) and cosine.interval is not None
    sqnr = score_outputs(METRICS["sqnr"], outputs, None)
    assert sqnr.values == {"quantized": pytest.approx(10 * np.log10(25))}
    assert sqnr.drop is None and sqnr.interval is None
    same = score_outputs(METRICS["sqnr"], dict.fromkeys(outputs, outputs["float"]), None)
    assert same.values == {}


@pytest.mark.parametrize("name", ["cosine", "sqnr"])
def test_outputs_that_are_not_finite_cannot_be_compared(name):
    outputs = {"float": np.ones((2, 2)), "quantized": np.array([[1, np.nan], [1, 1]])}
    with pytest.raises(DataError, match="holds NaN or Inf"):
        score_outputs(METRICS[name], outputs, None)


def test_less_is_better_turns_the_drop():
    label = np.array([[1, 2], [3, 4]])
    worse = np.array([[1, 9], [3, 4]])
    result = score_outputs(METRICS["wer"], {"float": label, "quantized": worse}, label)
    assert result.values == {"float": 0, "quantized": 25} and result.drop == 25
    lo, hi = result.interval
    assert lo == 0 and 25 < hi <= 50


def test_the_bootstrap_covers_as_the_normal_interval_does():
    first = RNG.normal(1, 1, 400)
    second = first - RNG.normal(0.2, 0.5, 400)
    mean = METRICS["psnr"].total
    lo, hi = bootstrap_interval(mean, first, second)
    gap = first - second
    half = 1.96 * gap.std(ddof=1) / np.sqrt(400)
    # 1000 resamples know an end of the interval to about a tenth of its half-width
    assert abs(lo - (gap.mean() - half)) < 0.2 * half and abs(hi - (gap.mean() + half)) < 0.2 * half
    assert bootstrap_interval(mean, first, second) == (lo, hi)
    assert bootstrap_interval(mean, first[:1], second[:1]) is None


def test_chunks_do_not_change_a_value(monkeypatch):
    outputs, labels = RNG.normal(size=(7, 3, 4, 4)), RNG.integers(0, 3, (7, 4, 4))
    whole = value("miou", outputs, labels)
    monkeypatch.setattr("qtool.metrics.registry.CHUNK", 100)
    assert value("miou", outputs, labels) == whole


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "words"),
    [
        ("miou", np.ones((2, 3)), np.zeros(2, int), r"expected class scores \[N, classes"),
        ("miou", np.ones((2, 3, 4, 4)), np.zeros((2, 4, 5), int), r"\[2, 4, 5\]; expected whole"),
        ("miou", np.ones((2, 3, 1, 1)), np.full((2, 1, 1), 3), "go up to 3, but.*3 classes"),
        ("miou", np.full((2, 3, 1, 1), np.nan), np.zeros((2, 1, 1), int), "holds NaN"),
        ("miou", np.ones((2, 3, 1, 1)), np.full((2, 1, 1), 255), "not a number"),
        ("psnr", np.ones((2, 3, 4, 4)), np.zeros((2, 4, 4)), r"expected target images"),
        ("psnr", np.ones((2, 1, 4, 4)), np.full((2, 1, 4, 4), 9.0), "float64 in 9..9; expected"),
        ("psnr", np.full((1, 1, 4, 4), np.inf), np.zeros((1, 1, 4, 4)), "NaN or Inf"),
        ("ssim", np.ones((2, 1, 9, 20)), np.zeros((2, 1, 9, 20)), "9x20; expected at least 11x11"),
        ("wer", np.full((1, 2), 0.5), np.zeros((1, 2), int), "output: found float64 .*token ids"),
        ("wer", np.zeros((1, 2), int), np.zeros(1, int), r"labels: found int64 \[1\]"),
        ("f1", np.ones((2, 3)), np.array([0, 3]), "1 of 2 labels lie outside"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_explained(name, outputs, labels, words):
    with pytest.raises(DataError, match=words):
        value(name, outputs, labels)


def own(tmp_path, text, name="score"):
    sys.modules.pop("mymetric", None)
    (tmp_path / "mymetric.py").write_text(text)
    return find_metric(f"mymetric:{name}", str(tmp_path), True)


def test_a_metric_of_one_s_own(tmp_path):
    text = "def score(outputs, labels):\n    return abs(outputs[:, 0] - labels)\n"
    text += "score.lower_is_better = True\nscore.unit = 'm'\n"
    metric = own(tmp_path, text)
    outputs = {"float": np.ones((4, 1)), "quantized": np.full((4, 1), 3.0)}
    result = score_outputs(metric, outputs, np.zeros(4))
    assert metric.unit == "m" and result.values == {"float": 1, "quantized": 3}
    assert result.drop == 2 and result.interval == (2, 2)


def test_a_metric_of_one_number_has_no_interval(tmp_path):
    metric = own(tmp_path, "def score(outputs, labels):\n    return outputs.max()\n")
    outputs = {"float": np.ones((4, 1)), "quantized": np.zeros((4, 1))}
    result = score_outputs(metric, outputs, None)
    assert result.drop == 1 and result.interval is None and metric.unit == ""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", "raised ZeroDivisionError"),
        ("return [1.0]", r"gave \[1\].*or \[4\], one per sample"),
        ("return float('nan')", "0 of 1 finite"),
        ("return 'good'", "raised ValueError"),
    ],
)
def test_a_metric_of_one_s_own_that_fails(tmp_path, body, words):
    metric = own(tmp_path, f"def score(outputs, labels):\n    {body}\n")
    outputs = {"float": np.ones((4, 1)), "quantized": np.zeros((4, 1))}
    with pytest.raises(DataError, match=words):
        score_outputs(metric, outputs, None)
    with pytest.raises(RecipeError, match=r"evaluate.metric: mymetric:score.*--trust-code"):
        find_metric("mymetric:score", str(tmp_path), False)
