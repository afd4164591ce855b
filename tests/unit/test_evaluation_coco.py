"""The matching of many images at once, held to pycocotools and to the official rule."""

import contextlib
import io

import numpy as np
import pytest
from memplan_models.detection_metrics.coco import IOUS, RECALLS, ImageRecord, match
from memplan_models.detection_metrics.curves import curves_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def _pycocotools(images, num_classes):
    """Return the precision `[10, 101, K]` that pycocotools finds."""
    sides = []
    shapes = [{"id": n, "height": i.height, "width": i.width} for n, i in images.items()]
    categories = [{"id": label, "name": str(label)} for label in range(num_classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        for is_detection in (False, True):
            annotations = []
            for number, image in images.items():
                rows = image.detections[:, [5, 0, 1, 2, 3]] if is_detection else image.objects
                scores = image.detections[:, 4] if is_detection else np.ones(len(rows))
                for (label, left, top, right, bottom), score in zip(rows, scores, strict=True):
                    box = [left, top, right - left, bottom - top]
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "category_id": int(label),
                         "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
                    )  # fmt: skip
            side = COCO()
            side.dataset = {"images": shapes, "categories": categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.maximum(evaluation.eval["precision"][..., 0, 0], 0)


def _crowd(seed, num_classes, most_objects, most_detections, step):
    """Return images whose boxes lie on a coarse grid and overlap, with scores that repeat."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 10, (count, 2)) * step
        return np.concatenate([corner, corner + rng.integers(3, 8, (count, 2)) * step], axis=1)

    images = {}
    for number in rng.permutation(12):
        objects = rng.integers(0, most_objects + 1)
        found = rng.integers(0, most_detections + 1)
        labels = rng.integers(0, num_classes, (objects, 1)) // 2 * 2  # odd classes: no objects
        scores = np.sort(rng.integers(0, 20, (found, 1)) / 20, axis=0)[::-1]
        images[int(number)] = ImageRecord(
            200,
            200,
            np.concatenate([labels, boxes(objects)], axis=1).astype(float),
            np.concatenate([boxes(found), scores, rng.integers(0, num_classes, (found, 1))], 1),
        )
    return images


@pytest.mark.parametrize(
    ("num_classes", "objects", "detections", "step"),
    [(1, 12, 40, 10), (5, 30, 200, 7.3), (1, 30, 250, 10), (3, 0, 20, 10), (3, 5, 0, 10)],
)
def test_precision_is_that_of_pycocotools(num_classes, objects, detections, step):
    """Ties, crowds, more than 100 detections, classes without objects: the same to the last bit."""
    images = _crowd(num_classes, num_classes, objects, detections, step)

    found = match(images, num_classes).precision

    np.testing.assert_array_equal(_pycocotools(images, num_classes), found)
    assert (len(IOUS), len(RECALLS), num_classes) == found.shape


def test_the_portions_that_memory_is_bounded_by_change_nothing(monkeypatch):
    """Images matched a few at a time give what they give together."""
    images = _crowd(0, 3, 20, 60, 10)
    together = match(images, 3)
    monkeypatch.setattr("memplan_models.detection_metrics.coco._MOST_AT_ONCE", 1)

    apart = match(images, 3)

    np.testing.assert_array_equal(together.precision, apart.precision)
    for one, other in zip(together.correct, apart.correct, strict=True):
        np.testing.assert_array_equal(one, other)


def _image(objects, detections):
    return ImageRecord(100, 100, np.array(objects, float), np.array(detections, float))


def test_a_detection_whose_object_is_gone_takes_another_only_with_coco():
    """Two detections nearest to one object, a second object near: COCO two hits, official one."""
    image = _image(
        [(0, 0, 0, 20, 20), (0, 4, 0, 24, 20)],
        [(0, 0, 20, 20, 0.9, 0), (1, 0, 21, 20, 0.8, 0)],
    )

    matching = match({0: image}, 1)

    assert 1.0 == matching.precision[0, :, 0].min()
    assert [True, False] == matching.correct[0].tolist()


def test_precision_and_recall_are_read_where_smoothed_f1_is_highest():
    """One hit at 0.9 and one miss at 0.2: the window of a tenth ends at 0.9, so 0.85 is read.

    Between the scores precision is linear, 1/2 to 1, as the official code draws it.
    """
    matching = match(
        {0: _image([(0, 0, 0, 20, 20)], [(0, 0, 20, 20, 0.9, 0), (60, 60, 80, 80, 0.2, 0)])}, 1
    )

    curves = curves_of(matching, np.array([1]))

    confidence = curves.best / 999
    assert 0.85 == pytest.approx(confidence, abs=2e-3)
    assert 0.5 + 0.5 * (confidence - 0.2) / 0.7 == pytest.approx(curves.precision[0, curves.best])
    assert 1.0 == curves.recall[0, curves.best]
