"""Masks judged by COCO's rules, compared pixel by pixel, enlarged and outlined."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from memplan_models.detection_metrics.coco import ImageRecord, match
from memplan_models.detection_metrics.masks import full_size, outlines, overlaps
from memplan_models.detection_metrics.nms import non_max_suppression
from memplan_models.detection_metrics.segmentation import SegmentationEvaluator
from memplan_models.detection_metrics.written import write_polygons
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIDE = 40


def _random_image(rng, num_classes):
    """Return an image's record by masks, and its masks: of objects, then of detections."""
    num_objects, num_found = rng.integers(0, 6), rng.integers(0, 15)
    masks = []
    for _ in range(num_objects + num_found):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(0, 20, 2)
        mask[top : top + rng.integers(8, 20), left : left + rng.integers(8, 20)] = 1
        mask[rng.integers(0, SIDE, 5)] = 0
        masks.append(mask)
    objects, found = masks[:num_objects], masks[num_objects:]
    common = np.array([[(o & f).sum() for o in objects] for f in found]).reshape(
        num_found, num_objects
    )
    union = np.array([[(o | f).sum() for o in objects] for f in found]).reshape(
        num_found, num_objects
    )
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (num_found, 1))
    scores = np.sort(rng.random((num_found, 1)), axis=0)[::-1]
    labels = rng.integers(0, num_classes, (num_found, 1))
    record = ImageRecord(
        SIDE,
        SIDE,
        np.concatenate(
            [rng.integers(0, num_classes, (num_objects, 1)), np.zeros((num_objects, 4))], 1
        ).astype(float),
        np.concatenate([boxes, scores, labels], 1),
        common / np.maximum(union, 1),
    )
    return record, objects, found


def _pycocotools(images, num_classes):
    """Return the precision `[10, 101, K]` that pycocotools finds for masks."""
    sides = []
    shapes = [{"id": n, "height": SIDE, "width": SIDE} for n in images]
    categories = [{"id": label, "name": str(label)} for label in range(num_classes)]
    with contextlib.redirect_stdout(io.StringIO()):
        for is_detection in (False, True):
            annotations = []
            for number, (record, objects, found) in images.items():
                rows = record.detections if is_detection else record.objects
                for row, mask in zip(rows, found if is_detection else objects, strict=True):
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0,
                         "category_id": int(row[5] if is_detection else row[0]),
                         "segmentation": coco_masks.encode(np.asfortranarray(mask)),
                         "area": int(mask.sum()), "score": row[4]}
                    )  # fmt: skip
            side = COCO()
            side.dataset = {"images": shapes, "categories": categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="segm")
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return np.maximum(evaluation.eval["precision"][..., 0, 0], 0)


@pytest.mark.parametrize("seed", [1, 2])
def test_masks_are_matched_as_pycocotools_does(seed):
    """Precision of many images and classes is that of pycocotools' segm."""
    rng = np.random.default_rng(seed)
    images = {number: _random_image(rng, 3) for number in range(20)}

    found = match({number: record for number, (record, _, _) in images.items()}, 3)

    expected = _pycocotools(images, 3)
    assert 0 < expected.mean()
    assert np.allclose(expected, found.precision, atol=1e-9)


def test_overlap_counts_pixels_within_the_box():
    """A prototype positive on the left half, cropped to the top: 8 of 16 pixels, the object 12."""
    prototypes = torch.ones(1, 4, 8)
    prototypes[..., 4:] = -1
    truth = torch.zeros(4, 8, dtype=torch.int16)
    truth[:3, :4] = 2
    found = torch.tensor([[0.0, 0.0, 1.0, 0.5, 0.9, 0.0, 1.0]])

    iou = overlaps(found, prototypes, truth, 2)

    assert [0.0, pytest.approx(8 / 12)] == iou[0].tolist()


def test_suppression_keeps_what_a_box_carries():
    """Coefficients stay with the boxes that are kept, in their order."""
    raw = torch.zeros(1, 4 + 2 + 3, 3)
    raw[0, :4] = torch.tensor([[10.0, 10, 4, 4], [30, 30, 4, 4], [10, 10, 4, 5]]).T
    raw[0, 4] = torch.tensor([0.5, 0.9, 0.8])
    raw[0, 6:] = torch.arange(9.0).view(3, 3)

    (rows,) = non_max_suppression(raw, num_extra=3)

    assert pytest.approx([0.9, 0.8]) == rows[:, 4].tolist()
    assert [[1.0, 4.0, 7.0], [2.0, 5.0, 8.0]] == rows[:, 6:].tolist()


def _perfect(shift=0):
    """Return predictions and a batch whose objects they find, masks moved by so many cells."""
    masks = torch.zeros(1, 16, 16, dtype=torch.int16)
    masks[0, 2:8, 2:8], masks[0, 8:14, 9:15] = 1, 2
    prototypes = torch.stack([(masks[0] == 1).float(), (masks[0] == 2).float()])[None] * 2 - 1
    prototypes = prototypes.roll(shift, 3)
    rows = torch.tensor([[8.0, 8, 32, 32, 0.9, 0, 1, 0], [36, 32, 60, 56, 0.8, 1, 0, 1]])
    batch = {
        "images": torch.zeros(1, 3, 64, 64),
        "targets": torch.tensor([[[0.0, 20 / 64, 20 / 64, 24 / 64, 24 / 64],
                                  [1.0, 48 / 64, 44 / 64, 24 / 64, 24 / 64],
                                  [-1.0, 0, 0, 0, 0]]]),
        "image_ids": torch.tensor([5]),
        "original_shapes": torch.tensor([[64, 64]]),
        "letterbox": torch.tensor([[1.0, 1, 0, 0]], dtype=torch.float64),
        "masks": masks,
    }  # fmt: skip
    return ([rows], prototypes), batch


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (4, 0.0)])
def test_boxes_and_masks_are_judged_apart(shift, expected):
    """Right boxes with masks of another place score by the boxes alone; fitness adds both."""
    evaluator = SegmentationEvaluator(["one", "other"])
    evaluator.update(*_perfect(shift))

    metrics = evaluator.compute()

    assert pytest.approx(1.0, abs=1e-6) == metrics["mAP50-95(B)"]
    assert pytest.approx(expected, abs=1e-6) == metrics["mAP50-95(M)"]
    assert pytest.approx(1 + expected, abs=1e-6) == metrics["fitness"]


def test_details_have_tables_of_both(tmp_path):
    """The text tells of boxes, then of masks; each has its table file."""
    evaluator = SegmentationEvaluator(["one", "other"])
    evaluator.update(*_perfect())

    text = evaluator.write_details(tmp_path, draws=False)

    assert ["mask_per_class.csv", "per_class.csv"] == sorted(p.name for p in tmp_path.iterdir())
    assert text.index("Validation by class") < text.index("Validation of masks by class")


def test_masks_are_enlarged_without_the_padding():
    """An image of 80 x 40 in the middle of a square: the prototypes' middle rows are its own."""
    prototypes = torch.full((1, 8, 8), -1.0)
    prototypes[0, 2:6, :4] = 1
    mixtures, boxes = torch.ones(2, 1), torch.tensor([[0.0, 0, 80, 40], [0.0, 0, 80, 20]])

    whole, half = full_size(mixtures, prototypes, boxes, (0.0, 0.25, 1.0, 0.75), (40, 80))

    assert (40, 80) == whole.shape
    assert whole[:, :35].all()
    assert not whole[:, 45:].any()
    assert not half[20:].any()


def test_an_outline_is_that_of_the_largest_part(tmp_path):
    """Written as a row of a label file, normalised, and left out where nothing is covered."""
    masks = np.zeros((2, 20, 40), np.bool_)
    masks[0, 5:16, 10:31] = True
    masks[0, 0, 0] = True

    found = outlines(masks)
    detections = np.array([[10.0, 5, 30, 15, 0.75, 3], [0, 0, 1, 1, 0.5, 1]])
    write_polygons(tmp_path / "a.txt", detections, found, (20, 40), confidence=True)

    assert [(10, 5), (10, 15), (30, 15), (30, 5)] == [tuple(point) for point in found[0]]
    assert "3 0.25 0.25 0.25 0.75 0.75 0.75 0.75 0.25 0.75\n" == (tmp_path / "a.txt").read_text()
