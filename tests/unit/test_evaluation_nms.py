"""Non-maximum suppression on predictions made by hand."""

import pytest
import torch
from memplan_models.detection_metrics.nms import non_max_suppression


def _predictions(*boxes):
    """Return `[1, 4 + nc, A]` from (x, y, w, h, score of class 0, score of class 1, ...)."""
    return torch.tensor(boxes, dtype=torch.float32).T[None]


def test_an_overlapping_box_of_the_same_class_is_suppressed():
    """Of two boxes with IoU 0.8 the better stays; rows are corners, score, class."""
    (found,) = non_max_suppression(
        _predictions((50, 50, 20, 20, 0.6, 0), (50, 50, 20, 16, 0.9, 0), (90, 50, 20, 20, 0.3, 0))
    )

    assert [[40, 42, 60, 58], [80, 40, 100, 60]] == found[:, :4].tolist()
    assert [0.9, 0.3] == pytest.approx(found[:, 4].tolist())


def test_boxes_at_the_threshold_stay():
    """Boxes that overlap less than the threshold are two detections."""
    boxes = ((50, 50, 20, 20, 0.6), (50, 50, 20, 12, 0.9))  # IoU 0.6

    assert 2 == len(non_max_suppression(_predictions(*boxes))[0])
    assert 1 == len(non_max_suppression(_predictions(*boxes), iou=0.5)[0])


def test_a_box_may_be_of_several_classes():
    """Each score above the least makes a detection of its class."""
    (found,) = non_max_suppression(_predictions((50, 50, 20, 20, 0.5, 0.001, 0.7)))

    assert [2, 0] == found[:, 5].tolist()


def test_classes_do_not_suppress_each_other_far_from_the_origin():
    """Many classes and boxes outside the image do not collide."""
    num_classes = 80
    scores = torch.linspace(0.9, 0.1, num_classes)
    box = torch.tensor([-300.0, 4000.0, 8.0, 8.0])
    (found,) = non_max_suppression(torch.cat([box, scores])[None, :, None])

    assert list(range(num_classes)) == found[:, 5].tolist()
    assert [-304, 3996, -296, 4004] == found[-1, :4].tolist()


def test_only_the_best_are_kept():
    """At most max_detections remain, of at most max_candidates."""
    grid = torch.arange(400) * 30.0
    ones = torch.full((400,), 20.0)
    predictions = torch.stack([grid, grid, ones, ones, torch.linspace(0.01, 0.9, 400)])[None]
    (found,) = non_max_suppression(predictions)

    assert 300 == len(found)
    assert 0.9 == pytest.approx(float(found[0, 4]))
    assert 7 == len(non_max_suppression(predictions, max_candidates=7)[0])


def test_nothing_above_the_least_score_gives_no_rows():
    """An image without candidates has an empty result; so has one of NaN scores."""
    quiet = _predictions((50, 50, 20, 20, 0.0005))
    broken = _predictions((50, 50, 20, 20, float("nan")))

    assert [(0, 6), (0, 6)] == [
        tuple(rows.shape) for rows in non_max_suppression(torch.cat([quiet, broken]))
    ]


def test_half_precision_is_read_as_float32():
    """Predictions of an AMP run come out in float32."""
    (found,) = non_max_suppression(_predictions((50, 50, 20, 20, 0.5)).half())

    assert torch.float32 == found.dtype


def test_a_picture_s_box_is_of_the_class_it_is_surest_of():
    """Evaluation counts it as both; where that class is left out, nothing is found."""
    raw = torch.tensor([[50.0, 50, 20, 20, 0.6, 0.9]]).T[None]

    def found(**options):
        [rows] = non_max_suppression(raw, confidence=0.5, **options)
        return rows[:, 5].tolist()

    assert [1.0, 0.0] == found()
    assert [1.0] == found(multi_label=False)
    assert [] == found(multi_label=False, classes=(0,))
