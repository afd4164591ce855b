"""Runs with the recipe's options about data: rectangles, image weights, quads, caches, LION."""

from functools import partial

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from memplan_models.yolov9.workload import YoloV9

from memplan.errors import UsageError
from memplan.spec import StepSpec
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint

FACTORY = partial(YoloV9, "yolov9-t")


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory):
    """Return a data.yaml of 6 training and 2 validation images, wide and tall."""
    root = tmp_path_factory.mktemp("oblongs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(count):
            shape = (40, 64, 3) if number % 2 else (64, 40, 3)
            image = rng.integers(0, 255, shape, np.uint8)
            image[10:30, 10:30] = 255
            cv2.imwrite(str(root / f"images/{split}/{number}.png"), image)
            x, y, width, height = 20 / shape[1], 20 / shape[0], 20 / shape[1], 20 / shape[0]
            row = f"{number % 2} {x} {y} {width} {height}\n"
            (root / f"labels/{split}/{number}.txt").write_text(row)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    return root / "data.yaml"


def _options(data, folder, **changes):
    values = {
        "data": data,
        "image_size": 64,
        "batch": 2,
        "epochs": 2,
        "workers": 0,
        "device": "cpu",
        "effective_batch": 4,
        "project": folder,
        "name": "run",
        "noplots": True,
    }
    spec = StepSpec(optimizer=changes.pop("optimizer", "SGD"))
    return TrainOptions(**(values | changes), spec=spec)


def _stop_after_first_epoch(name, facts):
    if name == "saved" and facts["epoch"] == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "changes",
    [
        {"rect": True, "cache": "ram"},
        {"quad": True, "batch": 4, "cache": "val"},
        {"image_weights": True, "optimizer": "LION", "cache": "disk"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_with_the_option_resumes_to_the_same_bits(data, tmp_path, changes):
    """It trains, records what it was asked, and a stop after an epoch changes no weight."""
    straight = train(FACTORY, _options(data, tmp_path / "straight", **changes)).run_folder
    with pytest.raises(KeyboardInterrupt):
        train(
            FACTORY,
            _options(data, tmp_path / "stopped", **changes),
            on_event=_stop_after_first_epoch,
        )
    stopped = tmp_path / "stopped" / "run"
    train(FACTORY, TrainOptions(data=data, resume=stopped, device="cpu", workers=0))

    expected, actual = (load_checkpoint(path / "weights/last.pt") for path in (straight, stopped))
    for name, tensor in expected.model.items():
        assert torch.equal(tensor, actual.model[name]), name
    assert expected.data == actual.data
    assert changes.items() <= actual.options.items()
    losses = pd.read_csv(straight / "results.csv")["train/box_loss"]
    assert losses.gt(0).all()
    if changes.get("image_weights"):
        assert 2 == len(actual.data["class_scores"])


def test_options_that_exclude_each_other_are_refused(data, tmp_path):
    """One order of images cannot be two, and four images need a multiple of four."""
    with pytest.raises(UsageError, match="Give one of them"):
        _options(data, tmp_path, rect=True, image_weights=True)
    with pytest.raises(UsageError, match="Nearest: 8"):
        _options(data, tmp_path, quad=True, batch=7)
