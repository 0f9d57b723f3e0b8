"""Mean average precision of boxes, by pycocotools."""

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from qtool.errors import DataError


def mean_average_precision(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Compute COCO's AP: the mean over classes and IoU 0.50, 0.55 .. 0.95, 100 boxes an image.

    Args:
        outputs: [N, boxes, 6]: x1, y1, x2, y2, score, class; a score of 0 or less is no box.
        labels: [N, boxes, 5]: x1, y1, x2, y2, class; a negative class is no box.

    Returns:
        From 0 to 1.

    Raises:
        DataError: pycocotools is not installed, the shapes do not fit, or there is no labelled box.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise DataError(
            "the metric map needs the package pycocotools, which is not installed; expected it: "
            "pip install 'qtool[detection]'"
        ) from error
    _check(outputs, labels)
    truth = [
        (k, box[:4], box[4], None) for k, rows in enumerate(labels) for box in rows if box[4] >= 0
    ]
    detections = [
        (k, box[:4], box[5], box[4]) for k, rows in enumerate(outputs) for box in rows if box[4] > 0
    ]
    if not truth:
        raise DataError("the labels hold no box (class 0 or above); expected at least one for map")
    if not detections:
        return 0.0
    classes = sorted({int(item[2]) for item in truth})
    with redirect_stdout(io.StringIO()):  # it prints tables
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": k} for k in range(len(labels))],
            "categories": [{"id": number} for number in classes],
            "annotations": [_annotation(*item, number=i) for i, item in enumerate(truth, 1)],
        }
        coco.createIndex()
        # COCO's mean is over the classes of the labels; boxes of other classes do not enter it.
        scored = [item for item in detections if int(item[2]) in set(classes)]
        if not scored:
            return 0.0
        results = coco.loadRes([_annotation(*item, number=i) for i, item in enumerate(scored, 1)])
        evaluator = COCOeval(coco, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


def _annotation(
    image: int, corners: np.ndarray, kind: float, score: float | None, number: int
) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in corners)
    box = [x1, y1, x2 - x1, y2 - y1]
    entry = {
        "id": number,
        "image_id": image,
        "category_id": int(kind),
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
    return entry if score is None else {**entry, "score": float(score)}


def _check(outputs: np.ndarray, labels: np.ndarray) -> None:
    for what, boxes, width, columns in (
        ("model's first output", outputs, 6, "x1, y1, x2, y2, score, class"),
        ("labels", labels, 5, "x1, y1, x2, y2, class"),
    ):
        if boxes.ndim != 3 or boxes.shape[2] != width or len(boxes) != len(outputs):
            raise DataError(
                f"the {what}: found shape {list(boxes.shape)}, expected "
                f"[{len(outputs)}, boxes, {width}] ({columns}) for map"
            )
        if not np.isfinite(boxes).all():
            raise DataError(f"the {what}: NaN or Inf among the boxes; expected finite numbers")
