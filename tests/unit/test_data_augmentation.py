"""Augmentation: pixels and boxes stay together."""

import numpy as np
import pytest
from memplan_models.yolov9.augment import (
    FILL,
    letterbox,
    mix,
    mosaic,
    normalise_boxes,
    place_boxes,
    random_affine,
    random_flip,
    shift_colours,
)

STILL = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0, "perspective": 0.0}


def _scene(height=64, width=64):
    """Return a dark image with one bright rectangle, and its pixel box."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:40, 10:30] = 255
    return image, np.array([[3, 10, 20, 30, 40]], np.float32)


def _bright_box(image):
    """Return left, top, right, bottom of the bright pixels."""
    ys, xs = np.nonzero(image[..., 0] > 200)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def test_letterbox_centres_and_reports_the_map():
    """A wide image is shrunk to the square's width and padded above and below."""
    image, transform = letterbox(np.zeros((50, 200, 3), np.uint8), 100, scale_up=False)

    assert (100, 100, 3) == image.shape
    assert (0.5, 0.5, 0.0, 37.0) == transform
    assert (FILL, 0, 0, FILL) == tuple(image[row, 50, 0] for row in (36, 37, 61, 62))


def test_letterbox_enlarges_only_when_asked():
    """A small image keeps its size in validation and fills the square in training."""
    small = np.zeros((40, 50, 3), np.uint8)

    assert (1.0, 1.0, 25.0, 30.0) == letterbox(small, 100, scale_up=False)[1]
    assert (2.0, 2.0, 0.0, 10.0) == letterbox(small, 100, scale_up=True)[1]


def test_boxes_survive_placing_and_normalising():
    """Placing normalised rows in a square of the same size and normalising gives them back."""
    labels = np.array([[1, 0.5, 0.25, 0.5, 0.125], [0, 0.125, 0.75, 0.25, 0.5]], np.float32)

    assert labels.tolist() == normalise_boxes(place_boxes(labels, 64, 64), 64).tolist()


def test_no_strength_leaves_image_and_boxes_alone():
    """With every strength 0 the affine map is the identity."""
    image, rows = _scene()
    result, boxes = random_affine(image, rows, 64, STILL, np.random.default_rng(0))

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
    result, boxes = random_affine(image, rows, 64, STILL | strengths, np.random.default_rng(seed))

    assert _bright_box(result) == pytest.approx(boxes[0, 1:], abs=2)


@pytest.mark.parametrize("seed", range(5))
def test_turned_boxes_contain_the_pixels(seed):
    """After turning and slanting, the box holds every bright pixel and touches them."""
    image, rows = _scene()
    strengths = STILL | {"degrees": 30.0, "shear": 10.0}
    result, boxes = random_affine(image, rows, 64, strengths, np.random.default_rng(seed))

    assert _bright_box(result) == pytest.approx(boxes[0, 1:], abs=3)


def test_boxes_moved_out_of_the_image_are_dropped():
    """A box keeps its row only with more than a tenth of its area and 2 pixels a side inside."""
    rows = np.array([[0, 0, 0, 20, 20], [1, 40, 40, 60, 60], [2, 30, 30, 32, 60]], np.float32)
    large = np.zeros((128, 128, 3), np.uint8)  # its middle 64 x 64 is what stays
    boxes = random_affine(large, rows, 64, STILL, np.random.default_rng(0))[1]

    assert [[1, 8, 8, 28, 28]] == boxes.tolist()


def test_a_mosaic_places_four_images_around_its_centre():
    """Every quarter of the canvas meets its neighbours at the centre, boxes included."""
    labels = np.array([[0, 0.5, 0.5, 1.0, 1.0]], np.float32)
    parts = [
        (np.full((32, 32, 3), 50 * i, np.uint8), labels + np.array([i, 0, 0, 0, 0]))
        for i in range(4)
    ]
    canvas, boxes = mosaic([(i, r.astype(np.float32)) for i, r in parts], 32, _Centre())

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
    canvas, boxes = mosaic(parts, 64, np.random.default_rng(seed))

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
