"""Masks of samples: rasterised, in step with their boxes, and data that has none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from memplan_models.yolo_data.loader import open_yolo_data
from memplan_models.yolo_data.masks import rasterise

from memplan.errors import BadInputError
from memplan.workload import DataOptions

SIDE = 128


def _rectangle(left, top, right, bottom):
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return np.array(points, np.float32)


def test_a_pixel_belongs_to_the_polygon_that_fills_most_of_it():
    """A square from pixel 8 through 23 fills cells 2 to 5 of four pixels each."""
    mask = rasterise([_rectangle(8, 8, 23, 23)], (32, 48), 4)

    expected = np.zeros((8, 12), np.int16)
    expected[2:6, 2:6] = 1
    assert np.array_equal(expected, mask)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_smaller_polygon_is_in_front(order):
    """Whatever their order, pixels of both are the smaller one's, numbered by its place."""
    both = [_rectangle(0, 0, 31, 31), _rectangle(8, 8, 15, 15)]

    mask = rasterise([both[place] for place in order], (32, 32), 4)

    assert order.index(1) + 1 == mask[2, 2]
    assert order.index(0) + 1 == mask[0, 0]
    assert 4 == (mask == order.index(1) + 1).sum()


def test_what_is_outside_is_cut_off():
    """A polygon across the border shows its part within, one beyond it nothing."""
    mask = rasterise([_rectangle(-50, -50, 7, 7), _rectangle(40, 40, 60, 60)], (32, 32), 4)

    assert 4 == (mask == 1).sum()
    assert 0 == (mask == 2).sum()


@pytest.fixture(scope="module")
def data_yaml(tmp_path_factory):
    """Eight images of two shapes each, one a triangle and one a lozenge."""
    root = tmp_path_factory.mktemp("shapes")
    for split, count in (("train", 8), ("val", 2)):
        for name in ("images", "labels"):
            (root / name / split).mkdir(parents=True)
        for number in range(count):
            height, width = (96, 128) if number % 2 else (128, 100)
            cv2.imwrite(
                str(root / "images" / split / f"{number}.png"),
                np.full((height, width, 3), 20 * number, np.uint8),
            )
            (root / "labels" / split / f"{number}.txt").write_text(
                f"0 0.1 0.1 0.45 0.15 0.2 0.{4 + number % 4}\n"
                "1 0.7 0.55 0.9 0.75 0.7 0.95 0.5 0.75\n"
            )
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: [triangle, lozenge]\n"
    )
    return root / "data.yaml"


def _options(path, **extra):
    strengths = {"degrees": 10.0, "flipud": 0.5, "fliplr": 0.5, "mixup": 0.3, "copy_paste": 0.5}
    return DataOptions(
        path=path, image_size=SIDE, hyperparameters=strengths, extra={"mask_ratio": 4, **extra}
    )


def _off(batch):
    """Return how far each object's mask ends from its box, in pixels; -1 where it is hidden."""
    height, width = batch["images"].shape[-2:]
    off = []
    for mask, rows in zip(batch["masks"], batch["targets"], strict=True):
        for number, (label, x, y, w, h) in enumerate(rows.tolist(), start=1):
            at = (mask == number).nonzero()
            if label < 0 or not len(at):
                off += [-1.0] * (label >= 0)
                continue
            box = [(x - w / 2) * width, (y - h / 2) * height]
            box += [(x + w / 2) * width, (y + h / 2) * height]
            (top, left), (bottom, right) = at.amin(0).tolist(), (at.amax(0) + 1).tolist()
            found = [4 * left, 4 * top, 4 * right, 4 * bottom]
            off.append(max(abs(a - b) for a, b in zip(box, found, strict=True)))
    return off


@pytest.mark.parametrize("augment_fully", [True, False])
def test_masks_of_training_samples_fill_their_boxes(data_yaml, augment_fully):
    """Through mosaic, turning, mixup, copies and flips, masks end where their boxes do."""
    data = open_yolo_data(_options(data_yaml))

    off = []
    for epoch in range(3):
        batches = data.training_batches(
            micro_batch_size=4, epoch=epoch, augment_fully=augment_fully
        )
        for batch in batches:
            assert ((4, 32, 32), torch.int16) == (tuple(batch["masks"].shape), batch["masks"].dtype)
            off += _off(batch)

    seen = [value for value in off if value >= 0]
    assert len(seen) > 0.8 * len(off)  # the others are behind copies and mixed images
    # Two cells of four pixels: thin corners fill no cell, and others may be in front.
    assert np.quantile(seen, 0.75) <= 8


def test_masks_of_validation_samples_fill_their_boxes(data_yaml):
    """Letterboxed images have their masks where their boxes are."""
    data = open_yolo_data(_options(data_yaml))

    (batch,) = data.validation_batches(micro_batch_size=2)

    assert batch["images"].shape[-1] == 4 * batch["masks"].shape[-1]
    assert all(0 <= off <= 8 for off in _off(batch))


def test_samples_without_masks_are_as_before(data_yaml):
    """Masks take part in no drawing: images and boxes are those of a detector's."""
    options = _options(data_yaml)
    plain = open_yolo_data(_options(data_yaml, mask_ratio=0))

    def first(data):
        return next(iter(data.training_batches(micro_batch_size=4, epoch=0, augment_fully=True)))

    one, other = first(open_yolo_data(options)), first(plain)

    assert "masks" not in other
    assert torch.equal(one["images"], other["images"])
    assert torch.equal(one["targets"], other["targets"])


def _boxes_only(folder, rows):
    for name in ("images", "labels"):
        (folder / name).mkdir()
    cv2.imwrite(str(folder / "images" / "0.png"), np.zeros((64, 64, 3), np.uint8))
    (folder / "labels" / "0.txt").write_text(rows)
    path = folder / "data.yaml"
    path.write_text("path: .\ntrain: images\nval: images\nnames: [one]\n")
    return path


def test_data_without_polygons_are_refused(tmp_path):
    """Boxes alone teach no masks: the error says what a row needs and what can be trained."""
    path = _boxes_only(tmp_path, "0 0.5 0.5 0.2 0.2\n")

    with pytest.raises(
        BadInputError, match=r"None of the 1 objects in 'train' .* polygon"
    ) as error:
        open_yolo_data(DataOptions(path=path, image_size=64, extra={"mask_ratio": 4}))
    assert "--cfg gelan-c" in str(error.value)


def test_a_box_among_polygons_is_its_own_mask(tmp_path):
    """A row of five numbers gets its rectangle, and a warning says how many there are."""
    path = _boxes_only(tmp_path, "0 0.25 0.5 0.5 1.0\n0 0.6 0.2 0.9 0.2 0.8 0.5\n")
    data = open_yolo_data(DataOptions(path=path, image_size=64, extra={"mask_ratio": 4}))

    (batch,) = data.validation_batches(micro_batch_size=1)

    assert any("1 of the 2 objects in 'train'" in warning for warning in data.warnings)
    assert 0 <= _off(batch)[0] <= 4
