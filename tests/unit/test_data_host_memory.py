"""Host memory of reading a data set: what is kept, and what loader processes take."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from memplan_models.yolo_data.loader import open_yolo_data

from memplan.host_memory import available_host_bytes
from memplan.processes import num_cores
from memplan.training.host_words import host_memory_words
from memplan.units import MIB
from memplan.workload import DataOptions


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of eight images of two sizes at 64 pixels, read by one process."""
    folder = tmp_path_factory.mktemp("few")
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(4):
            pixels = np.zeros((80 + 40 * (number % 2), 100, 3), np.uint8)
            cv2.imwrite(str(folder / "images" / split / f"{number}.png"), pixels)
            (folder / "labels" / split / f"{number}.txt").write_text("0 .5 .5 .2 .2\n")
    path = folder / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [thing]\n")
    return DataOptions(path=path, image_size=64, num_workers=1, seed=0)


def test_images_kept_are_counted_to_the_byte(options):
    """`--cache ram` takes three bytes a pixel of each resized image of both splits."""
    data = open_yolo_data(replace(options, num_workers=0, extra={"cache": "ram"}))
    kept = [data.training.store[place] for place in range(len(data.training))]
    kept += [data.validation.store[place] for place in range(len(data.validation))]

    assert {"images kept": int(np.sum([one.nbytes for one in kept]))} == data.host_bytes(4)


def test_loaders_take_what_they_share_their_canvases_and_batches_ahead(options):
    """Each has mosaics of twice the side and the largest image decoded; two batches wait."""
    found = open_yolo_data(options).host_bytes(4)
    largest = max(3 * one.height * one.width for one in open_yolo_data(options).training.images)

    assert {
        "1 loader process": (450 + 15) * MIB + 5 * 3 * 128**2 + largest,
        "batches ahead": 2 * 4 * 3 * 64**2,
    } == found


def test_more_loaders_than_cores_are_not_counted(options):
    """No more processes are started than there are cores, or batches."""
    data = open_yolo_data(replace(options, num_workers=1000))

    assert any(name.startswith(f"{min(num_cores(), 4)} loader") for name in data.host_bytes(1))
    assert "1 loader process" in data.host_bytes(1000)


class _Ranks:
    size = 2


class _Setup:
    ranks = _Ranks
    micro_batch_size = 4

    def __init__(self, data):
        self.data = data


class _Hungry:
    def host_bytes(self, _):
        return {"images kept": 3, "9 loader processes": available_host_bytes()}


def test_a_run_says_both_and_warns_where_it_is_too_little(options):
    """The line names each part and what is free; every rank has loaders of its own."""
    line, warning = host_memory_words(_Setup(open_yolo_data(options)))
    _, needy = host_memory_words(_Setup(_Hungry()))

    assert line.startswith("Host memory beside this process: ")
    assert "1 loader process" in line
    assert " on each device (predicted); " in line
    assert "" == warning
    assert "Give fewer --workers" in needy
    assert ("", "") == host_memory_words(_Setup(object()))
