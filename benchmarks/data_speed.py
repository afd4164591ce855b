"""Images a second of the training data, by worker and stage, beside what cards would consume."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from memplan_models.yolo_data import pipeline
from memplan_models.yolo_data.collate import collate
from memplan_models.yolo_data.decode import ImageStore
from memplan_models.yolo_data.hyperparameters import read_hyperparameters
from memplan_models.yolo_data.loader import YoloData, open_yolo_data
from memplan_models.yolo_data.pipeline import Request
from memplan_models.yolo_data.sample import _load_photographs
from memplan_models.yolo_data.view import View

import memplan
from benchmarks.common import publish
from benchmarks.official_parity import Checkout
from memplan.device.catalogue import card
from memplan.evaluation.throughput import images_per_second
from memplan.workload import DataOptions

SIZE = 640
BATCH = 16
REPEATS = 5
IMAGES_A_REPEAT = 64
OBJECTS = 10
CARDS = ("t4", "rtx-3060-12gb", "rtx-3090", "rtx-4090", "a100-80gb", "h100-80gb", "h200")
OFFICIAL_WORKERS = 8
# Of COCO's training images these are the four commonest shapes.
SHAPES = ((480, 640), (427, 640), (640, 480), (375, 500))
_STAGES = {
    "draw_places": "where things are",
    "gather_objects": "where things are",
    "choose_copies": "where things are",
    "draw_view": "where things are",
    "map_objects": "where things are",
    "compose": "mosaic canvas",
    "paste_copies": "copy-paste",
    "render": "affine",
    "mix": "mixup",
    "shift_colours": "HSV",
    "draw_flips": "flips",
    "flip": "flips",
    "to_tensor": "to tensor",
}


def write_images(
    root: Path, num_images: int, scale: float = 1.0, *, polygons: bool = False
) -> Path:
    """Write photographs with ten objects each, and return the path of their `data.yaml`."""
    rng = np.random.default_rng(0)
    photographs = _load_photographs()
    for split, count in (("train", num_images), ("val", 2)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            height, width = (round(side * scale) for side in SHAPES[number % len(SHAPES)])
            cv2.imwrite(
                str(images / f"{number:04d}.jpg"),
                _photograph(photographs[number % 2], height, width, rng),
                [cv2.IMWRITE_JPEG_QUALITY, 90],
            )
            rows = [_row(rng, polygons=polygons) for _ in range(OBJECTS)]
            (labels / f"{number:04d}.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 80\n")
    return root / "data.yaml"


def _photograph(source: Any, height: int, width: int, rng: np.random.Generator) -> Any:
    """Return a crop of a photograph at a size, with a camera's noise, so that it packs like one."""
    side = int(rng.integers(250, 420))
    top, left = (int(rng.integers(limit - side + 1)) for limit in source.shape[:2])
    crop = cv2.resize(source[top : top + side, left : left + side], (width, height))
    return np.clip(crop + rng.normal(0, 9, crop.shape), 0, 255).astype(np.uint8)


def _row(rng: np.random.Generator, *, polygons: bool) -> str:
    x, y = rng.uniform(0.2, 0.8, 2)
    width, height = rng.uniform(0.05, 0.35, 2)
    numbers: Any = (x, y, width, height)
    if polygons:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        circle = np.stack([x + np.cos(angles) * width / 2, y + np.sin(angles) * height / 2], 1)
        numbers = circle.ravel()
    return f"{int(rng.integers(80))} " + " ".join(f"{number:.5f}" for number in numbers)


@contextlib.contextmanager
def replaced(names: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Let the pipeline use other functions for a while."""
    kept = {name: getattr(pipeline, name) for name in names}
    for name, function in names.items():
        setattr(pipeline, name, function)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(pipeline, name, function)


def _warp(image: Any, view: View) -> Any:
    height, width = view.shape
    return cv2.warpAffine(image, view.matrix[:2], (width, height), borderValue=(114, 114, 114))


def _interleaved(image: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))


# What each lever replaced; together the pipeline as it was before it was profiled.
BEFORE: dict[str, dict[str, Callable[..., Any]]] = {
    "all four images decoded": {"sees": lambda _view, _place: True},
    "warp of the canvas": {"render": _warp},
    "interleaved copy to planes": {"to_tensor": _interleaved},
}


def seconds_a_batch(data: YoloData, epoch: int) -> float:
    """Return the processor's seconds an image takes in this process, collation included.

    Not the clock's: they do not grow when other programs have the cores.
    """
    samples = data.training
    requests = [
        Request(epoch, image % len(samples), True, (SIZE, SIZE)) for image in range(IMAGES_A_REPEAT)
    ]
    start = time.process_time()
    for first in range(0, len(requests), BATCH):
        collate([samples[request] for request in requests[first : first + BATCH]])
    return (time.process_time() - start) / len(requests)


def compare(
    data: YoloData, *, levers: bool, other: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Return images/s of the pipeline as it is and as it was, side by side.

    With `levers` also without each single one; with `other` also what that returns.
    """
    variants: dict[str, dict[str, Any]] = {"now": {}}
    variants |= {f"with {name}": names for name, names in BEFORE.items() if levers}
    variants["before"] = {name: f for names in BEFORE.values() for name, f in names.items()}
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    seconds_a_batch(data, 0)
    for repeat in range(REPEATS):
        for name, names in variants.items():
            with replaced(names):
                speeds[name].append(1 / seconds_a_batch(data, repeat))
        if other is not None:
            speeds.setdefault("official code", []).append(other())
    return speeds


def profile(data: YoloData) -> dict[str, float]:
    """Return milliseconds an image of each stage."""
    spent: dict[str, float] = dict.fromkeys(
        ["decode and resize", *_STAGES.values(), "collate"], 0.0
    )

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            result = function(*arguments)
            spent[stage] += time.process_time() - start
            return result

        return run

    samples = data.training
    load = ImageStore.__getitem__
    ImageStore.__getitem__ = timed("decode and resize", load)
    names = {name: timed(stage, getattr(pipeline, name)) for name, stage in _STAGES.items()}
    count = 2 * IMAGES_A_REPEAT
    try:
        with replaced(names):
            for first in range(0, count, BATCH):
                batch = [
                    samples[Request(7, i % len(samples), True, (SIZE, SIZE))]
                    for i in range(first, first + BATCH)
                ]
                timed("collate", collate)(batch)
    finally:
        ImageStore.__getitem__ = load
    return {stage: seconds / count * 1000 for stage, seconds in spent.items()}


def through_loader(path: Path, num_workers: int) -> list[float]:
    """Return images/s through the loader, from the first batch of an epoch to its last."""
    speeds = []
    for epoch in range(REPEATS):
        data = open_yolo_data(DataOptions(path=path, image_size=SIZE, num_workers=num_workers))
        batches = iter(
            data.training_batches(micro_batch_size=BATCH, epoch=epoch, augment_fully=True)
        )
        # Each worker has two batches ready by the time the first is here; they do not count.
        for _ in range(2 * num_workers):
            next(batches)
        start = time.perf_counter()
        num_images = sum(len(batch["images"]) for batch in batches)
        speeds.append(num_images / (time.perf_counter() - start))
    return speeds


def official(checkout: Checkout, path: Path) -> float:
    """Return images/s of the official code's data set, as `compare` takes memplan's."""
    hyp, _ = read_hyperparameters(None)
    found = checkout.run(
        "draw_speed",
        images=str(path.parent / "images" / "train"),
        side=SIZE,
        hyp=dict(hyp),
        repeats=1,
        count=IMAGES_A_REPEAT,
        batch=BATCH,
    )
    return 1 / float(found["seconds"])


def appetites() -> dict[str, float]:
    """Return the images/s that memplan's roofline predicts for yolov9-s on each card.

    As a plan does it for micro-batches of 16, four a step, in amp-fp16; without what workspaces
    add to the bytes that are moved.
    """
    tape = memplan.record("yolov9-s", batch=BATCH, img=SIZE)
    no_workspace = np.zeros(len(tape.convolutions), dtype=np.int64)
    return {name: images_per_second(tape, card(name), no_workspace, 4) for name in CARDS}


def _spread(speeds: list[float]) -> tuple[str, str, str]:
    return f"{statistics.median(speeds):.1f}", f"{min(speeds):.1f}", f"{max(speeds):.1f}"


@click.command()
@click.option(
    "--official",
    "checkout",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="PATH",
    help="Also measure the official code of this checkout, by turns with memplan's.",
)
def main(checkout: Path | None) -> None:
    """Measure and publish."""
    # As in a loader's worker, and in the official code's process: threads that wait count as well.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    wanted_by_card = appetites()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small = write_images(root / "small", 256)
        sets = {
            "boxes, 640 px class": small,
            "polygons, 640 px class": write_images(root / "polygons", 96, polygons=True),
            "boxes, 1920 px photographs": write_images(root / "large", 32, 3.0),
        }
        rows: list[tuple[str, str, str, str, str]] = []
        for title, path in sets.items():
            data = open_yolo_data(DataOptions(path=path, image_size=SIZE))
            other = None
            if checkout is not None:
                other = partial(official, Checkout(checkout.resolve(), sys.executable, root), path)
            speeds = compare(data, levers=path is small, other=other)
            base = statistics.median(speeds["before"])
            for name, values in speeds.items():
                ratio = f"{statistics.median(values) / base:.2f}"
                rows.append((f"{title}: {name}", *_spread(values), ratio))
            if path is small:
                stages = profile(data)
                one_worker = statistics.median(speeds["now"])
        for num_workers in (1, 2):
            speeds_now = through_loader(small, num_workers)
            rows.append((f"loader, {num_workers} worker(s)", *_spread(speeds_now), ""))
    rows += [
        (f"stage: {name}, ms an image", f"{ms:.2f}", "", "", "") for name, ms in stages.items()
    ]
    short = []
    for name, wanted in wanted_by_card.items():
        needed = -(-wanted // one_worker)
        rows.append((f"{name}: yolov9-s predicted, images/s", f"{wanted:.0f}", "", "", ""))
        rows.append((f"{name}: workers it needs", f"{needed:.0f}", "", "", ""))
        if needed > OFFICIAL_WORKERS:
            short.append(f"{name} ({OFFICIAL_WORKERS * one_worker / wanted:.0%} of its appetite)")
    publish(
        "data_speed",
        "Training data of yolov9 at 640 px, mosaic and mixup of scratch-high.yaml, images/s",
        ("Measured", "Median", "Least", "Most", "To before"),
        rows,
        [
            f"{REPEATS} repeats of {IMAGES_A_REPEAT} images, variants in turn within each repeat; "
            "'before' and 'with' put back what a lever replaced. One thread, files in the page "
            "cache; times are the processor's, so that other programs do not show in them.",
            "The loader's rows are by the clock, so there other programs do show.",
            f"Images: {', '.join(f'{w} x {h}' for h, w in SHAPES)}, JPEG quality 90, {OBJECTS} "
            "objects each.",
            "Appetite is memplan's own prediction (roofline), not a measurement; workers needed "
            "assume for each a core like this machine's, at the speed of 'boxes, 640 px class: "
            "now'.",
            f"Cards that {OFFICIAL_WORKERS} workers leave waiting: {', '.join(short) or 'none'}. "
            "Half of an image's time is decoding, which --cache ram spares.",
            "Official code: its data set with the same hyperparameters and images, in processes "
            "of its own, by turns with memplan's rows.",
            f"Load of the machine when it ended: {os.getloadavg()[0]:.1f} (other work slows it).",
        ],
        "data_speed --official PATH" if checkout is not None else None,
    )


if __name__ == "__main__":
    main()
