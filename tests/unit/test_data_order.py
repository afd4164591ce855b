"""Orders and shapes of batches: rectangles, image weights, four to an image."""

import cv2
import numpy as np
import pytest
import torch
from memplan_models.yolo_data.decode import resized_shape
from memplan_models.yolo_data.loader import open_yolo_data
from memplan_models.yolo_data.order import common_shape, image_weights
from memplan_models.yolo_data.scan import LabelledImage
from memplan_models.yolov9.workload import YoloV9

from memplan.errors import BadInputError
from memplan.training.guard import num_samples
from memplan.workload import DataOptions, ResumableData

SHAPES = [(100, 50), (50, 100), (80, 80), (60, 100), (100, 60), (50, 100)]


@pytest.fixture
def data_yaml(tmp_path, monkeypatch):
    """Six images of three aspect ratios; the first three of class 0, the rest of class 1."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        for number, (height, width) in enumerate(SHAPES):
            pixels = np.full((height, width, 3), 40 * number, np.uint8)
            cv2.imwrite(str(tmp_path / "images" / split / f"{number}.png"), pixels)
            row = f"{int(number > 2)} 0.5 0.5 0.4 0.4\n"
            (tmp_path / "labels" / split / f"{number}.txt").write_text(row)
    path = tmp_path / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    return path


def _open(path, **extra):
    return open_yolo_data(DataOptions(path=path, image_size=64, extra=extra))


def _train(data, size=2, epoch=0):
    return list(data.training_batches(micro_batch_size=size, epoch=epoch, augment_fully=True))


def _image(height, width, classes=()):
    labels = np.array([[label, 0.5, 0.5, 0.1, 0.1] for label in classes], np.float32)
    return LabelledImage("a.jpg", height, width, labels.reshape(-1, 5))


@pytest.mark.parametrize(
    ("shapes", "padding", "expected"),
    [
        ([(480, 640), (400, 640)], 0.0, (480, 640)),
        ([(640, 480), (640, 400)], 0.0, (640, 480)),
        ([(480, 640), (640, 480)], 0.0, (640, 640)),
        ([(480, 640)], 0.5, (512, 672)),
        ([(640, 480)], 0.5, (672, 512)),
        ([(427, 640)], 0.0, (448, 640)),
        ([(10, 1000)], 0.0, (32, 640)),
    ],
)
def test_a_batch_has_the_smallest_rectangle_its_images_fit_in(shapes, padding, expected):
    """Sides are multiples of the stride; wide and tall together are square."""
    images = [_image(*shape) for shape in shapes]

    assert expected == common_shape(images, 640, 32, padding)


def test_rectangles_go_from_wide_to_tall_alike_in_every_epoch(data_yaml):
    """Batches are no larger than the square, and hold every image once, in one order."""
    data = _open(data_yaml, rect=True)
    epochs = [_train(data, epoch=epoch) for epoch in (0, 1)]
    shapes = [tuple(batch["images"].shape[2:]) for batch in epochs[0]]
    orders = [torch.cat([b["image_ids"] for b in batches]).tolist() for batches in epochs]

    assert [(32, 64), (64, 64), (64, 64)] == shapes
    assert [1, 5, 3, 2, 4, 0] == orders[0] == orders[1]


def test_rectangles_have_no_mosaics(data_yaml):
    """Each sample has its own image's object and no other, also where mosaics are asked for."""
    for batch in _train(_open(data_yaml, rect=True)):
        assert (batch["targets"][..., 0] >= 0).sum(1).max() <= 1


def test_rectangular_validation_says_how_it_was_made(data_yaml):
    """A wide batch has the official padding of half a stride; maps lead back to the file."""
    data = _open(data_yaml, rect=True, validation_size=96)
    batches = list(data.validation_batches(micro_batch_size=2))

    assert [(64, 96), (96, 96), (96, 64)] == [tuple(b["images"].shape[2:]) for b in batches] or (
        (64, 96) == tuple(batches[0]["images"].shape[2:])
    )
    assert list(range(6)) == sorted(torch.cat([b["image_ids"] for b in batches]).tolist())
    for batch in batches:
        height, width = batch["images"].shape[2:]
        for place in range(len(batch["images"])):
            scale_x, scale_y, left, top = batch["letterbox"][place].tolist()
            shape = batch["original_shapes"][place].tolist()
            x, y = batch["targets"][place, 0, 1:3].tolist()
            assert (x * width - left) / scale_x == pytest.approx(shape[1] / 2, abs=1e-3)
            assert (y * height - top) / scale_y == pytest.approx(shape[0] / 2, abs=1e-3)


def test_rare_and_badly_detected_classes_weigh_more():
    """A class weighs (1 - mAP)^2 over its objects, and an image the sum over its own."""
    images = [_image(9, 9, [0]), _image(9, 9, [0]), _image(9, 9, [0, 1]), _image(9, 9)]

    assert [1 / 6, 1 / 6, 2 / 3, 0] == pytest.approx(image_weights(images, np.zeros(2)))
    halved = np.array([1 / 3, 1 / 3, 1 / 3 + 0.25, 0])
    assert (halved / halved.sum()).tolist() == pytest.approx(
        image_weights(images, np.array([0.0, 0.5]))
    )
    assert [0.25] * 4 == image_weights(images, np.ones(2)).tolist()


def test_image_weights_follow_the_last_evaluation(data_yaml):
    """A class that is detected perfectly is not drawn any more; the same state, the same draw."""
    data = _open(data_yaml, image_weights=True)
    assert isinstance(data, ResumableData)
    assert {"class_scores": [0.0, 0.0]} == data.state()
    evaluator = data.evaluator()
    for batch in data.validation_batches(micro_batch_size=6):
        evaluator.update(_perfect(batch, label=1), batch)
    evaluator.compute()
    drawn = torch.cat([batch["image_ids"] for batch in _train(data, epoch=1)])

    assert {"class_scores": [0.0, pytest.approx(1.0)]} == data.state()
    assert {0, 1, 2} >= set(drawn.tolist())
    other = _open(data_yaml, image_weights=True)
    other.restore(data.state())
    for one, two in zip(_train(data, epoch=1), _train(other, epoch=1), strict=True):
        assert torch.equal(one["images"], two["images"])


def test_an_image_drawn_twice_is_augmented_anew(data_yaml):
    """Repeats within an epoch are samples of their own."""
    data = _open(data_yaml, image_weights=True)
    batches = _train(data, 1)
    images = {}
    for batch in batches:
        images.setdefault(int(batch["image_ids"]), []).append(batch["images"])
    repeated = [found for found in images.values() if len(found) > 1]

    assert repeated
    assert all(not torch.equal(found[0], found[1]) for found in repeated)


def test_state_of_other_classes_is_refused(data_yaml):
    """A checkpoint of another data set says how many classes it had."""
    with pytest.raises(BadInputError, match=r"has 2 classes, but .* are of 3"):
        _open(data_yaml, image_weights=True).restore({"class_scores": [0.0] * 3})


def _perfect(batch, label):
    """Return the batch's own objects of one class as detections."""
    height, width = batch["images"].shape[2:]
    found = []
    for rows in batch["targets"]:
        kept = rows[rows[:, 0] == label]
        half = kept[:, 3:] / 2
        corners = torch.cat([kept[:, 1:3] - half, kept[:, 1:3] + half], 1)
        corners *= torch.tensor([width, height, width, height])
        found.append(torch.cat([corners, torch.ones(len(kept), 1), kept[:, :1]], 1))
    return found


def test_four_samples_become_one_of_twice_the_side(data_yaml):
    """Six samples make two images; each says how many it took, and boxes stay on their pixels."""
    data = _open(data_yaml, quad=True)
    (batch,) = _train(data, 8)

    assert (2, 3, 128, 128) == tuple(batch["images"].shape)
    assert [4, 2] == batch["images_each"].tolist()
    assert 6 == num_samples(batch)


def test_a_quad_tiles_four_or_enlarges_one(data_yaml):
    """Either the four quarters are the four samples, or the first fills the image."""
    kinds = set()
    for epoch in range(8):
        plain = _train(_open(data_yaml), 4, epoch)[0]
        quad = _train(_open(data_yaml, quad=True), 4, epoch)[0]
        image = quad["images"][0]
        tiles = torch.stack([image[:, y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)])
        if torch.equal(plain["images"], tiles):
            kinds.add("tiled")
            used = [rows[rows[:, 0] >= 0] for rows in plain["targets"]]
            assert sum(map(len, used)) == int((quad["targets"][0, :, 0] >= 0).sum())
            assert torch.allclose(used[0][:, 1:] / 2, quad["targets"][0, : len(used[0]), 1:])
        else:
            kinds.add("enlarged")
            small = torch.nn.functional.avg_pool2d(image[None].float(), 2)[0]
            assert (small - plain["images"][0].float()).abs().mean() < 12
            count = int((plain["targets"][0, :, 0] >= 0).sum())
            assert torch.equal(plain["targets"][0, :count], quad["targets"][0, :count])

    assert {"tiled", "enlarged"} == kinds


def test_the_loss_of_quads_counts_four_times():
    """A quarter of the images with four times the loss keeps the sum over a batch."""
    totals = []
    for quad in (False, True):
        torch.manual_seed(0)
        workload = YoloV9("yolov9-t", num_classes=2, image_size=64, quad=quad)
        model = workload.build_model().eval().train()
        batch = YoloV9("yolov9-t", num_classes=2, image_size=64).make_batch(1)
        total, _ = workload.compute_loss(model, workload.prepare(batch))
        totals.append(float(total.detach()))

    assert 4 * totals[0] == pytest.approx(totals[1])
    quads = YoloV9("yolov9-t", num_classes=2, image_size=64, quad=True).make_batch(8)
    assert (2, 3, 128, 128) == tuple(quads["images"].shape)


def test_validation_is_rectangular_without_being_asked_for_and_square_on_demand(data_yaml):
    """Training's `rect` decides nothing about validation, whose own option does."""
    shapes = [
        {tuple(b["images"].shape[2:]) for b in data.validation_batches(micro_batch_size=2)}
        for data in (
            _open(data_yaml, validation_size=96),
            _open(data_yaml, validation_size=96, rect_validation=False),
        )
    ]

    assert (64, 96) in shapes[0]
    assert {(96, 96)} == shapes[1]


def test_a_resized_image_has_the_official_size():
    """Fractions of the shorter side are cut off, not rounded: 427 at 416 / 640 is 277.55."""
    assert (277, 416) == resized_shape(_image(427, 640), 416)
