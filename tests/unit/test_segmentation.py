"""Networks with masks from name to picture: recorded, trained, evaluated, drawn."""

from __future__ import annotations

import csv
import math

import cv2
import numpy as np
import pytest
import torch
from memplan_models.yolov9.workload import YoloV9, YoloV9Segmentation

from memplan.errors import BadInputError, UsageError
from memplan.fit.align import same_structure
from memplan.inference import DetectOptions, ValidateOptions
from memplan.registry import make_workload
from memplan.trace.record import record
from memplan.workload import DataOptions, ExportOptions

SIDE = 64
_TINY = """\
nc: 2
depth_multiple: 1.0
width_multiple: 1.0
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [[2, 3, 4], 1, Segment, [nc, 32, 32]]
"""


def _write_split(folder, count, seed):
    """Write images of a bright disc or triangle on each half, with their polygons."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image = rng.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
        lines = []
        for half in range(2):
            label, radius = int(rng.integers(2)), rng.uniform(10, 14)
            corners = 3 if label else 24
            angles = np.arange(corners) * 2 * math.pi / corners + rng.uniform(0, 6)
            middle = np.array([16 + 32 * half, rng.uniform(16, 48)])
            points = middle + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
            points = points.clip(0, SIDE - 1)
            colour = (40, 200, 220) if label else (220, 120, 40)
            cv2.fillPoly(image, [points.astype(np.int32)], colour)
            numbers = " ".join(f"{value / SIDE:.5f}" for value in points.ravel())
            lines.append(f"{label} {numbers}\n")
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
        (folder / "labels" / f"{number}.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a data set and a network's description."""
    root = tmp_path_factory.mktemp("segmentation")
    _write_split(root / "train", 32, 1)
    _write_split(root / "val", 16, 2)
    (root / "data.yaml").write_text(
        "path: .\ntrain: train/images\nval: val/images\nnames: [disc, triangle]\n"
    )
    (root / "tiny.yaml").write_text(_TINY)
    return root


@pytest.fixture(scope="module")
def tiny(root):
    """The workload of the description, which augments little."""
    strengths = {"mosaic": 0.0, "scale": 0.2}
    arguments = {"image_size": SIDE, "num_classes": 2, "hyperparameters": strengths}
    return make_workload(str(root / "tiny.yaml"), arguments)


@pytest.fixture(scope="module")
def trained(root, tiny):
    """The metrics that training ends with, and a checkpoint of its weights."""
    torch.manual_seed(0)
    data = tiny.open_data(DataOptions(path=root / "data.yaml", image_size=SIDE))
    net = tiny.build_model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for epoch in range(16):
        for batch in data.training_batches(micro_batch_size=16, epoch=epoch, augment_fully=True):
            loss, _ = tiny.compute_loss(net, tiny.prepare(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    evaluator = data.evaluator()
    net.eval()
    for batch in data.validation_batches(micro_batch_size=16):
        with torch.no_grad():
            found, parts = tiny.evaluate(net, tiny.prepare(batch))
        evaluator.update(found, batch)
    path = root / "tiny.pt"
    torch.save({"model": net.state_dict(), "class_names": ["disc", "triangle"]}, path)
    return evaluator.compute(), parts, path


def test_names_and_official_paths_are_networks_with_masks():
    """Shipped names and paths inside an official checkout give the workload with four losses."""
    for name in ("gelan-c-seg", "models/segment/yolov9-c-dseg.yaml"):
        workload = make_workload(name, {"image_size": SIDE})

        assert isinstance(workload, YoloV9Segmentation)
        assert ("box_loss", "seg_loss", "cls_loss", "dfl_loss") == workload.loss_names
        assert (3, 16, 16) == tuple(workload.make_batch(3)["masks"].shape)
    assert type(make_workload("gelan-c")) is YoloV9


def test_four_images_in_one_are_refused():
    """`--quad` has no masks in the official recipe either."""
    with pytest.raises(UsageError, match="--quad: gelan-c-seg learns masks"):
        make_workload("gelan-c-seg", {"quad": True})


def test_a_step_has_one_structure_at_every_batch(tiny):
    """Sizes follow from shapes alone, so two recordings are one program; no rule is missing."""
    one, other = (record(tiny, batch) for batch in (2, 3))

    assert same_structure(one, other)
    assert {} == one.description.unknown_operators


def test_a_network_with_masks_learns(trained):
    """Sixteen epochs of 32 small images find shapes and their outlines."""
    metrics, parts, _ = trained

    assert 0.6 < metrics["mAP50(M)"]
    assert 0.2 < metrics["mAP50-95(M)"]
    assert (4,) == tuple(parts.shape)


def test_a_checkpoint_scores_what_training_reported(root, tiny, trained, tmp_path):
    """`memplan val` judges masks as validation during training does."""
    expected, _, weights = trained
    options = ValidateOptions(
        weights=weights, data=root / "data.yaml", cfg=str(root / "tiny.yaml"), folder=tmp_path,
        image_size=SIDE, batch_size=16, draws=False,
    )  # fmt: skip

    lines = list(tiny.validate(options))

    with (tmp_path / "mask_per_class.csv").open() as file:
        everything = next(csv.DictReader(file))
    assert pytest.approx(expected["mAP50-95(M)"], abs=0.02) == float(everything["mAP50-95"])
    assert any("Validation of masks by class" in line for line in lines)


def _returned(generator):
    """Return what a generator returns when it ends."""
    found = []

    def through():
        found.append((yield from generator))

    list(through())
    return found[0]


def test_masks_are_drawn_and_written(root, tiny, trained, tmp_path):
    """`memplan predict` tints what masks cover and writes polygons, close to the labels'."""
    options = DetectOptions(
        weights=trained[2], data=root / "data.yaml", cfg=str(root / "tiny.yaml"), folder=tmp_path,
        image_size=SIDE, source=str(root / "val" / "images"), saves_txt=True, confidence=0.05,
        max_detections=20, shows_labels=False, line_thickness=1,
    )  # fmt: skip

    found = _returned(tiny.detect(options))

    assert all((len(one.boxes), SIDE, SIDE) == one.masks.shape for one in found)
    best = next(one for one in found if len(one.boxes))
    inside = best.masks[0]
    before, after = (
        cv2.imread(str(folder / best.path.name)) for folder in (root / "val" / "images", tmp_path)
    )
    assert (before != after)[inside].any(axis=1).mean() > 0.9
    row = (tmp_path / "labels" / f"{best.path.stem}.txt").read_text().splitlines()[0].split()
    assert int(row[0]) == int(best.boxes[0, 5])
    polygon = np.array(row[1:], float).reshape(-1, 2) * SIDE
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(drawn, [polygon.round().astype(np.int32)], 1)
    assert (drawn.astype(bool) & inside).sum() > 0.9 * inside.sum()


def test_an_export_is_refused(root, tiny, trained, tmp_path):
    """Masks are not exported: the error says what runs the checkpoint."""
    options = ExportOptions(
        weights=trained[2], cfg=str(root / "tiny.yaml"), output=tmp_path / "x.pt", format="pt"
    )

    with pytest.raises(BadInputError, match="masks, which are not exported"):
        tiny.export(options)


def test_results_of_masks_as_coco_s_file_are_refused(root, tiny, trained, tmp_path):
    """A result file of boxes alone would be taken for one of masks."""
    options = ValidateOptions(
        weights=trained[2], data=root / "data.yaml", cfg=str(root / "tiny.yaml"), folder=tmp_path,
        image_size=SIDE, saves_json=True,
    )  # fmt: skip

    with pytest.raises(UsageError, match="--save-json has boxes alone"):
        list(tiny.validate(options))
