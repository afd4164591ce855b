"""Polygons: clipped exactly, kept through mosaic and affine, copied mirrored."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from memplan_models.yolo_data.mosaic import add_copies, gather_objects
from memplan_models.yolo_data.pipeline import Request, TrainingSamples
from memplan_models.yolo_data.polygons import Copy, choose_copies, clip_polygon, paste_copies
from memplan_models.yolo_data.scan import LabelledImage
from memplan_models.yolo_data.view import draw_view, map_objects

STILL = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0, "perspective": 0.0}
TRIANGLE = np.float32([[10, 10], [30, 10], [20, 30]])


def test_a_polygon_within_the_image_is_left_alone():
    """Nothing is clipped where nothing is outside."""
    assert np.array_equal(TRIANGLE, clip_polygon(TRIANGLE, 64, 64))


def test_a_polygon_is_cut_at_the_border():
    """A triangle whose tip is outside becomes the trapezium within."""
    clipped = clip_polygon(TRIANGLE, 20, 64)

    assert [[10, 10], [30, 10], [25, 20], [15, 20]] == clipped.tolist()
    assert 0 == len(clip_polygon(TRIANGLE + 100, 64, 64))


@pytest.mark.parametrize("seed", range(10))
def test_clipping_keeps_every_point_within(seed):
    """A point of the image is in the clipped polygon where it is in the whole one."""
    points = np.random.default_rng(seed).uniform(-40, 100, (3, 2)).astype(np.float32)
    clipped = clip_polygon(points, 64, 64)
    for x, y in np.random.default_rng(seed).uniform(1, 63, (200, 2)).tolist():
        distance = cv2.pointPolygonTest(points, (x, y), measureDist=True)
        inside = len(clipped) > 2 and cv2.pointPolygonTest(clipped, (x, y), measureDist=False) > 0
        assert abs(distance) < 0.01 or inside == (distance > 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_turned_polygon_has_a_tighter_box_than_its_turned_box(seed):
    """A triangle's box after turning is that of its points."""
    rows = np.float32([[0, 10, 10, 30, 30]])
    view = draw_view((64, 64), (64, 64), STILL | {"degrees": 40.0}, np.random.default_rng(seed))
    box = map_objects(rows, [TRIANGLE], view)[0, 1:]
    mapped = np.column_stack([TRIANGLE, np.ones(3)]) @ view.matrix.T

    assert np.concatenate([mapped[:, :2].min(0), mapped[:, :2].max(0)]) == pytest.approx(
        box, abs=1e-3
    )
    around = map_objects(rows, [], view)[0, 1:]
    assert (box[:2] >= around[:2]).all()
    assert (box[2:] <= around[2:]).all()


def test_a_polygon_stays_with_a_hundredth_of_its_box():
    """A twentieth left keeps an object with a polygon and loses one that is a box."""
    rows = np.float32([[0, 0, 20, 100, 40]] * 2)
    square = np.float32([[0, 20], [100, 20], [100, 40], [0, 40]])
    view = draw_view((64, 64), (64, 64), STILL, np.random.default_rng(0))
    shifted = np.float32([[0, 60, 20, 160, 40]])
    moved = square + np.float32([60, 0])

    assert 1 == len(map_objects(shifted, [moved], view))
    assert 0 == len(map_objects(shifted, [], view))
    assert 2 == len(map_objects(rows, [square, square[:0]], view))


def test_polygons_survive_the_mosaic():
    """On the canvas each is in its image's place, clipped, and gives the row its box."""
    labels = np.float32([[1, 0.5, 0.5, 0.5, 0.5]])
    polygon = np.float32([[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]])
    image = LabelledImage(Path(), 32, 32, labels, (polygon,))
    boxed = LabelledImage(Path(), 32, 32, labels)
    places = [(0, 0, 32, 32), (32, 0, 64, 32), (0, 32, 32, 64), (48, 48, 80, 80)]
    rows, polygons = gather_objects([image, boxed, boxed, image], places, 32)

    assert [3, 0, 0, 4] == [len(points) for points in polygons]
    assert [1, 8, 8, 24, 24] == rows[0].tolist()
    assert rows[3, 1:].tolist() == [56, 56, 64, 64]


def test_copies_are_a_share_of_the_polygons():
    """Half of two polygons is one copy, mirrored; boxes are not copied."""
    rows = np.float32([[0, 0, 0, 10, 10], [1, 2, 40, 12, 50], [2, 50, 0, 60, 5]])
    square = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]]) * 10
    polygons = [square, square + np.float32([2, 40]), square[:0]]
    (copy,) = choose_copies(rows, polygons, 0.5, 100, np.random.default_rng(0))
    left, top, right, bottom = rows[copy.place, 1:].tolist()

    assert (100 - right, top, 100 - left, bottom) == copy.box
    assert [*copy.box] == [*copy.polygon.min(0), *copy.polygon.max(0)]
    everything, points = add_copies(rows, polygons, [copy])
    assert rows[copy.place, 0] == everything[3, 0]
    assert 4 == len(points)
    assert [] == choose_copies(rows, polygons, 0.0, 100, np.random.default_rng(0))


def test_a_copy_that_would_hide_an_object_is_not_pasted():
    """An object in the middle would be mirrored onto itself."""
    rows = np.float32([[0, 45, 0, 55, 10]])
    square = np.float32([[45, 0], [55, 0], [55, 10], [45, 10]])

    assert [] == choose_copies(rows, [square], 1.0, 100, np.random.default_rng(0))


def test_pasting_draws_the_polygon_and_nothing_around_it():
    """Pixels of the triangle appear mirrored; the rest of its box stays."""
    image = np.zeros((40, 100, 3), np.uint8)
    image[10:31, 10:31] = 99
    polygon = TRIANGLE * np.float32([-1, 1]) + np.float32([100, 0])
    paste_copies(image, [Copy(0, polygon, (70, 10, 90, 30))])

    assert 99 == image[15, 80, 0]
    assert 0 == image[28, 71, 0] == image[28, 88, 0]
    assert 99 * 21 * 21 == image[:, :50, 0].sum()


def test_a_sample_with_copies_has_more_boxes_than_without(tmp_path):
    """Copy-paste adds objects to a mosaic of polygons, and their pixels."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[4:20, 4:20] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    square = np.float32([[4, 4], [20, 4], [20, 20], [4, 20]]) / 64
    labels = np.float32([[0, 12 / 64, 12 / 64, 16 / 64, 16 / 64]])
    labelled = LabelledImage(tmp_path / "a.png", 64, 64, labels, (square,))
    colours = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "flipud": 0.0, "fliplr": 0.0}
    strengths = STILL | colours | {"scale": 0.5, "mosaic": 1.0, "mixup": 0.0}
    counts, bright = [], []
    for share in (0.0, 1.0):
        samples = TrainingSamples(
            [labelled], size=64, strengths=strengths | {"copy_paste": share}, seed=1
        )
        wanted = [samples[Request(epoch, 0, True, (64, 64))] for epoch in range(20)]
        counts.append(sum(len(sample.labels) for sample in wanted))
        bright.append(sum(int((sample.image > 200).sum()) for sample in wanted))

    assert counts[1] > 1.1 * counts[0]
    assert bright[1] > 1.1 * bright[0]
