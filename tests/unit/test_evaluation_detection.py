"""Average precision on cases whose answer is known."""

import pytest
import torch
from memplan_models.detection_metrics.evaluation import DetectionEvaluator

SIZE = 100


def _batch(*images, letterbox=(1.0, 1.0, 0.0, 0.0), shape=(SIZE, SIZE), first=0):
    """Return a validation batch of images given as rows (class, left, top, right, bottom)."""
    most = max(1, *(len(rows) for rows in images))
    targets = torch.zeros(len(images), most, 5)
    targets[..., 0] = -1
    for padded, rows in zip(targets, images, strict=True):
        for row, (label, left, top, right, bottom) in zip(padded, rows, strict=False):
            row[:] = torch.tensor(
                [label, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            )
            row[1:] /= SIZE
    return {
        "images": torch.zeros(len(images), 3, SIZE, SIZE, dtype=torch.uint8),
        "targets": targets,
        "image_ids": torch.arange(first, first + len(images)),
        "original_shapes": torch.tensor([shape] * len(images)),
        "letterbox": torch.tensor([letterbox] * len(images), dtype=torch.float64),
    }


def _found(*rows):
    """Return detections from rows (left, top, right, bottom, score, class)."""
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)


def _evaluate(batch, *predictions, names=("a", "b")):
    evaluator = DetectionEvaluator(names)
    evaluator.update(list(predictions), batch)
    return evaluator


def test_perfect_detections_score_one():
    """Every object found, nothing else: all metrics are 1."""
    metrics = _evaluate(
        _batch([(0, 10, 10, 30, 30), (1, 50, 50, 90, 90)], [(1, 0, 0, 20, 60)]),
        _found((10, 10, 30, 30, 0.9, 0), (50, 50, 90, 90, 0.8, 1)),
        _found((0, 0, 20, 60, 0.7, 1)),
    ).compute()

    assert dict.fromkeys(("precision", "recall", "mAP50", "mAP50-95", "fitness"), 1.0) == (
        pytest.approx(metrics)
    )


def test_no_detections_score_zero():
    """Without any prediction all metrics are 0, with no warning."""
    batch = _batch([(0, 10, 10, 30, 30)])

    assert {0.0} == set(_evaluate(batch, _found()).compute().values())


def test_no_objects_score_zero():
    """Without any object there is nothing to find; all metrics are 0."""
    metrics = _evaluate(_batch([]), _found((10, 10, 30, 30, 0.9, 0))).compute()

    assert {0.0} == set(metrics.values())


def test_an_evaluator_that_saw_nothing_scores_zero():
    """Before any batch all metrics are 0."""
    assert {0.0} == set(DetectionEvaluator(["a"]).compute().values())


def test_a_box_counts_up_to_its_overlap():
    """A detection of IoU 0.72 counts at thresholds 0.50 to 0.70: half of the ten."""
    metrics = _evaluate(_batch([(0, 0, 0, 100, 100)]), _found((0, 0, 100, 72, 0.9, 0))).compute()

    assert 1.0 == pytest.approx(metrics["mAP50"])
    assert 0.5 == pytest.approx(metrics["mAP50-95"])
    assert 0.1 + 0.9 * 0.5 == pytest.approx(metrics["fitness"])


def test_half_found_gives_the_points_up_to_that_recall():
    """One of two objects found: precision 1 at recalls 0.00 to 0.50, 51 of COCO's 101 points."""
    metrics = _evaluate(
        _batch([(0, 0, 0, 20, 20), (0, 50, 50, 70, 70)]), _found((0, 0, 20, 20, 0.9, 0))
    ).compute()

    assert 51 / 101 == pytest.approx(metrics["mAP50"])
    assert (1.0, 0.5) == (metrics["precision"], metrics["recall"])


def test_a_better_scored_false_detection_halves_the_precision():
    """A miss ranked above the hit leaves precision 1/2 at every recall."""
    metrics = _evaluate(
        _batch([(0, 0, 0, 20, 20)]),
        _found((60, 60, 80, 80, 0.9, 0), (0, 0, 20, 20, 0.5, 0)),
    ).compute()

    assert 0.5 == pytest.approx(metrics["mAP50"])
    assert (0.5, 1.0) == (metrics["precision"], metrics["recall"])


def test_a_worse_scored_false_detection_costs_nothing():
    """A miss ranked below all hits does not change AP, and costs what smoothing F1 costs."""
    metrics = _evaluate(
        _batch([(0, 0, 0, 20, 20)]),
        _found((0, 0, 20, 20, 0.9, 0), (60, 60, 80, 80, 0.2, 0)),
    ).compute()

    assert 1.0 == pytest.approx(metrics["fitness"])
    assert (0.9642, 1.0) == pytest.approx((metrics["precision"], metrics["recall"]), abs=1e-4)


def test_a_second_detection_of_an_object_is_false():
    """An object matches once; a repeat with a lower score is a false detection after the hit."""
    metrics = _evaluate(
        _batch([(0, 0, 0, 20, 20), (0, 50, 50, 70, 70)]),
        _found((0, 0, 20, 20, 0.9, 0), (0, 0, 20, 19, 0.8, 0), (50, 50, 70, 70, 0.7, 0)),
    ).compute()

    # precision 1 at recalls up to 0.5 (51 points), then 2/3 (50 points)
    assert (51 + 50 * 2 / 3) / 101 == pytest.approx(metrics["mAP50"])


def test_the_class_must_agree():
    """A detection of the wrong class finds nothing."""
    metrics = _evaluate(_batch([(0, 0, 0, 20, 20)]), _found((0, 0, 20, 20, 0.9, 1))).compute()

    assert 0.0 == metrics["fitness"]


def test_classes_without_objects_do_not_count_in_the_mean():
    """The mean is over the classes that occur; the table lists all."""
    evaluator = _evaluate(
        _batch([(0, 0, 0, 20, 20)], [(0, 0, 0, 20, 20), (0, 50, 50, 70, 70)]),
        _found((0, 0, 20, 20, 0.9, 0), (40, 40, 60, 60, 0.9, 2)),
        _found((0, 0, 20, 20, 0.8, 0), (50, 50, 70, 70, 0.9, 0)),
        names=("a", "b", "c"),
    )

    assert 1.0 == pytest.approx(evaluator.compute()["mAP50-95"])
    table = evaluator.per_class()
    assert [("a", 2, 3), ("b", 0, 0), ("c", 0, 0)] == [
        (row.name, row.num_images, row.num_objects) for row in table
    ]
    assert [1, 0, 0] == pytest.approx([row.map50 for row in table])


def test_matching_is_in_the_original_images_pixels():
    """A letterboxed detection is mapped back and clipped to the original image."""
    # An original of 50 x 200 at scale 0.5 lies between rows 37.5 and 62.5 of the square.
    batch = _batch([(0, 0, 37, 50, 62)], letterbox=(0.5, 0.5, 0.0, 37.0), shape=(50, 200))
    metrics = _evaluate(batch, _found((-30, 20, 50, 90, 0.9, 0))).compute()

    assert 1.0 == pytest.approx(metrics["mAP50-95"])


def test_raw_predictions_go_through_suppression():
    """A tensor `[B, 4 + nc, A]` is suppressed first."""
    raw = torch.tensor([[10.0, 10, 20, 20, 0.9], [10.0, 10, 20, 19, 0.8]]).T[None]
    evaluator = DetectionEvaluator(["a"])
    evaluator.update(raw, _batch([(0, 0, 0, 20, 20)]))

    assert 1.0 == pytest.approx(evaluator.compute()["fitness"])


def test_batches_add_up(capsys):
    """Two updates count as one, and nothing is printed."""
    evaluator = DetectionEvaluator(["a"])
    for image in range(2):
        rows = _found((0, 0, 20, 20, 0.9, 0)) if image else _found()
        evaluator.update([rows], _batch([(0, 0, 0, 20, 20)], first=image))

    assert 51 / 101 == pytest.approx(evaluator.compute()["mAP50"])
    assert ("", "") == capsys.readouterr()
