"""Augmentation: pixels and boxes stay together."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from memplan_models.yolo_data.augment import (
    FILL,
    letterbox,
    mix,
    normalise_boxes,
    place_boxes,
    random_flip,
    shift_colours,
)
from memplan_models.yolo_data.mosaic import compose, draw_places, gather_objects
from memplan_models.yolo_data.scan import LabelledImage
from memplan_models.yolo_data.view import View, _draw_matrix, draw_view, map_objects, render

STILL = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0, "perspective": 0.0}


def _scene(height=64, width=64):
    """Return a dark image with one bright rectangle, and its pixel box."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:40, 10:30] = 255
    return image, np.array([[3, 10, 20, 30, 40]], np.float32)


def _view(image, rows, size, strengths, rng):
    """Return a random view of an image with its boxes."""
    view = draw_view(image.shape[:2], (size, size), strengths, rng)
    return render(image, view), map_objects(rows, [], view)


def _mosaic(parts, size, rng):
    """Return the canvas of four images and labels, and its boxes."""
    places = draw_places([image.shape[:2] for image, _ in parts], size, rng)
    images = [LabelledImage(Path(), *i.shape[:2], rows.astype(np.float32)) for i, rows in parts]
    return compose([i for i, _ in parts], places, size), gather_objects(images, places, size)[0]


def _bright_box(image):
    """Return left, top, right, bottom of the bright pixels."""
    ys, xs = np.nonzero(image[..., 0] > 200)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def test_letterbox_centres_and_reports_the_map():
    """A wide image is shrunk to the square's width and padded above and below."""
    image, transform = letterbox(np.zeros((50, 200, 3), np.uint8), (100, 100), scale_up=False)

    assert (100, 100, 3) == image.shape
    assert (0.5, 0.5, 0.0, 37.0) == transform
    assert (FILL, 0, 0, FILL) == tuple(image[row, 50, 0] for row in (36, 37, 61, 62))


def test_letterbox_enlarges_only_when_asked():
    """A small image keeps its size in validation and fills the square in training."""
    small = np.zeros((40, 50, 3), np.uint8)

    assert (1.0, 1.0, 25.0, 30.0) == letterbox(small, (100, 100), scale_up=False)[1]
    assert (2.0, 2.0, 0.0, 10.0) == letterbox(small, (100, 100), scale_up=True)[1]


def test_boxes_survive_placing_and_normalising():
    """Placing normalised rows in a square of the same size and normalising gives them back."""
    labels = np.array([[1, 0.5, 0.25, 0.5, 0.125], [0, 0.125, 0.75, 0.25, 0.5]], np.float32)

    assert labels.tolist() == normalise_boxes(place_boxes(labels, 64, 64), (64, 64)).tolist()


def test_no_strength_leaves_image_and_boxes_alone():
    """With every strength 0 the affine map is the identity."""
    image, rows = _scene()
    result, boxes = _view(image, rows, 64, STILL, np.random.default_rng(0))

    assert np.array_equal(image, result)
    assert rows.tolist() == boxes.tolist()


@pytest.mark.parametrize(
    "strengths",
    [
        {"translate": 0.2},
        {"scale": 0.4},
        {"translate": 0.1, "scale": 0.3},
        {"perspective": 0.0005},
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_boxes_follow_the_pixels(strengths, seed):
    """After moving, zooming and tilting, the box is where the bright pixels are."""
    image, rows = _scene()
    result, boxes = _view(image, rows, 64, STILL | strengths, np.random.default_rng(seed))

    assert _bright_box(result) == pytest.approx(boxes[0, 1:], abs=2)


@pytest.mark.parametrize("seed", range(5))
def test_turned_boxes_contain_the_pixels(seed):
    """After turning and slanting, the box holds every bright pixel and touches them."""
    image, rows = _scene()
    strengths = STILL | {"degrees": 30.0, "shear": 10.0}
    result, boxes = _view(image, rows, 64, strengths, np.random.default_rng(seed))

    assert _bright_box(result) == pytest.approx(boxes[0, 1:], abs=3)


def test_boxes_moved_out_of_the_image_are_dropped():
    """A box keeps its row only with more than a tenth of its area and 2 pixels a side inside."""
    rows = np.array([[0, 0, 0, 20, 20], [1, 40, 40, 60, 60], [2, 30, 30, 32, 60]], np.float32)
    large = np.zeros((128, 128, 3), np.uint8)  # its middle 64 x 64 is what stays
    boxes = _view(large, rows, 64, STILL, np.random.default_rng(0))[1]

    assert [[1, 8, 8, 28, 28]] == boxes.tolist()


def test_a_mosaic_places_four_images_around_its_centre():
    """Every quarter of the canvas meets its neighbours at the centre, boxes included."""
    labels = np.array([[0, 0.5, 0.5, 1.0, 1.0]], np.float32)
    parts = [
        (np.full((32, 32, 3), 50 * i, np.uint8), labels + np.array([i, 0, 0, 0, 0]))
        for i in range(4)
    ]
    canvas, boxes = _mosaic(parts, 32, _Centre())

    assert (64, 64, 3) == canvas.shape
    assert [0, 50, 100, 150] == [
        int(canvas[y, x, 0]) for y, x in ((31, 31), (31, 32), (32, 31), (32, 32))
    ]
    assert [
        [0, 0, 0, 32, 32], [1, 32, 0, 64, 32], [2, 0, 32, 32, 64], [3, 32, 32, 64, 64],
    ] == boxes.tolist()  # fmt: skip


class _Centre:
    """Draws the middle of every range."""

    def uniform(self, low, high):
        return (low + high) / 2


@pytest.mark.parametrize("seed", range(6))
def test_mosaic_boxes_lie_on_the_canvas_and_on_their_pixels(seed):
    """Whatever the centre, each kept box is where its bright rectangle is drawn."""
    labels = np.array([[0, 0.5, 0.5, 0.25, 0.25]], np.float32)
    dark = np.zeros((64, 48, 3), np.uint8)
    bright = dark.copy()
    bright[24:40, 18:30] = 255
    parts = [(dark, np.zeros((0, 5), np.float32))] * 3
    parts.insert(seed % 4, (bright, labels))
    canvas, boxes = _mosaic(parts, 64, np.random.default_rng(seed))

    assert 1 == len(boxes)
    assert _bright_box(canvas).tolist() == boxes[0, 1:].tolist()


def test_mixing_blends_pixels_and_keeps_all_boxes():
    """A mix lies between both images and carries the boxes of both."""
    one, rows = _scene()
    image, boxes = mix((one, rows), (255 - one, rows), np.random.default_rng(0))

    assert 60 < image.min() <= image.max() < 195
    assert 2 == len(boxes)


@pytest.mark.parametrize(("flipud", "fliplr"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_flips_turn_the_boxes_too(flipud, fliplr):
    """A mirrored image has mirrored boxes."""
    strengths = {"flipud": flipud, "fliplr": fliplr}
    image, boxes = random_flip(*_scene(64, 80), strengths, np.random.default_rng(0))

    assert _bright_box(image).tolist() == boxes[0, 1:].tolist()


def test_colours_stay_alone_without_strength():
    """With no colour strengths the image is returned as it is."""
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    strengths = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}

    assert image is shift_colours(image, strengths, np.random.default_rng(0))


def test_brightness_changes_by_at_most_its_strength():
    """A grey image under hsv_v 0.4 stays within 40 % of its value."""
    image = np.full((4, 4, 3), 100, np.uint8)
    strengths = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.4}
    values = [
        int(shift_colours(image, strengths, np.random.default_rng(seed)).max())
        for seed in range(30)
    ]

    assert 60 <= min(values) < 80
    assert 120 < max(values) <= 140


@pytest.mark.parametrize("strengths", [{"perspective": 0.0008}, {"degrees": 20.0, "shear": 5.0}])
def test_a_tilted_view_of_a_canvas_shows_its_middle(strengths):
    """Only the part that is seen is warped, which gives what warping everything gives."""
    canvas = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    view = draw_view((128, 128), (64, 64), STILL | strengths | {"scale": 0.5},
                     np.random.default_rng(4))  # fmt: skip
    whole = cv2.warpPerspective(canvas, view.matrix, (64, 64), borderValue=(FILL,) * 3)

    assert view.placed is None
    assert np.abs(whole.astype(int) - render(canvas, view)).mean() < 3


@pytest.mark.parametrize("seed", range(8))
def test_an_upright_view_differs_from_the_warp_by_less_than_a_pixel(seed):
    """Another size instead of a warp moves a smooth picture's values hardly, and no box by 1 px."""
    ys, xs = np.mgrid[:128, :128]
    canvas = np.stack([xs, ys, (xs + ys) // 2], axis=-1).astype(np.uint8)
    strengths = STILL | {"scale": 0.6, "translate": 0.2}
    view = draw_view((128, 128), (64, 64), strengths, np.random.default_rng(seed))
    drawn = _draw_matrix((128, 128), (64, 64), strengths, np.random.default_rng(seed))[0]
    corners = np.array([[0, 0, 1], [128, 128, 1]])

    assert np.abs(corners @ view.matrix.T - corners @ drawn.T)[:, :2].max() < 2
    inner = np.array([[view.source[0], view.source[1], 1], [view.source[2], view.source[3], 1]])
    assert np.abs(inner @ view.matrix.T - inner @ drawn.T).max() <= 0.5
    warped = cv2.warpAffine(canvas, drawn[:2], (64, 64), borderValue=(FILL,) * 3)
    inside = np.s_[16:48, 16:48]
    assert np.abs(warped[inside].astype(int) - render(canvas, view)[inside]).max() <= 4


def test_a_view_of_nothing_is_grey():
    """Where the sample shows no part of the image every pixel is the fill, and no box stays."""
    image, rows = _scene()
    view = View(np.array([[1, 0, 500], [0, 1, 0], [0, 0, 1.0]]), 1.0, (64, 64), (0, 0, 0, 0), None)

    assert {FILL} == set(np.unique(render(image, view)).tolist())
    assert 0 == len(map_objects(rows, [], view))
