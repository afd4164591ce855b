"""Time and memory of detection metrics on as many images as COCO's validation set has.

    python -m benchmarks.eval_speed [CHECKOUT]

With a checkout of the official repository its own matching and metrics read the same detections.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import publish
from memplan.host_memory import resident_peak_bytes
from memplan.units import MIB

IMAGES, CLASSES, DETECTIONS, BATCH = 5_000, 80, 300, 32
OBJECTS = 7.3  # an image on average, as in COCO
SIZE = 640
_LIMIT_SECONDS = 1_800


def batches(seed: int = 0) -> Iterator[tuple[list[torch.Tensor], dict[str, torch.Tensor]]]:
    """Yield detections and objects of made-up images, in batches as validation gives them."""
    rng = np.random.default_rng(seed)
    for first in range(0, IMAGES, BATCH):
        count = min(BATCH, IMAGES - first)
        objects = [_objects(rng) for _ in range(count)]
        targets = torch.zeros(count, max(len(rows) for rows in objects), 5)
        targets[..., 0] = -1
        for padded, rows in zip(targets, objects, strict=True):
            padded[: len(rows)] = torch.from_numpy(rows)
        yield (
            [torch.from_numpy(_detections(rows, rng)) for rows in objects],
            {
                "images": torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8),
                "targets": targets,
                "image_ids": torch.arange(first, first + count),
                "original_shapes": torch.full((count, 2), SIZE),
                "letterbox": torch.tensor([[1.0, 1, 0, 0]] * count, dtype=torch.float64),
            },
        )


def _objects(rng: np.random.Generator) -> Any:
    count = max(int(rng.poisson(OBJECTS)), 1)
    sides = rng.uniform(0.03, 0.4, (count, 2))
    centres = rng.uniform(0.25, 0.75, (count, 2))
    # A few classes are most of what there is, as in COCO.
    labels = np.minimum(rng.geometric(0.08, (count, 1)) - 1, CLASSES - 1)
    return np.concatenate([labels, centres, sides], axis=1).astype(np.float32)


def _detections(objects: Any, rng: np.random.Generator) -> Any:
    """Return boxes near objects, several each, the nearer the surer, and as many guesses."""
    chosen = objects[rng.integers(0, len(objects), DETECTIONS)]
    spread = 0.04 + rng.exponential(0.15, (DETECTIONS, 1))
    corners = np.concatenate(
        [chosen[:, 1:3] - chosen[:, 3:] / 2, chosen[:, 1:3] + chosen[:, 3:] / 2], axis=1
    )
    corners += spread * rng.normal(0, 1, (DETECTIONS, 4)) * np.tile(chosen[:, 3:], 2)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 0.01)
    scores = np.exp(-6 * spread) * rng.uniform(0.3, 1, (DETECTIONS, 1))
    wrong = rng.random((DETECTIONS, 1)) < 0.3
    labels = np.where(wrong, rng.integers(0, CLASSES, (DETECTIONS, 1)), chosen[:, :1])
    rows = np.concatenate([corners.clip(0, 1) * SIZE, scores, labels], axis=1)
    return rows[np.argsort(-rows[:, 4])].astype(np.float32)


def _ours() -> dict[str, float]:
    from memplan_models.detection_metrics.evaluation import DetectionEvaluator

    evaluator = DetectionEvaluator([str(label) for label in range(CLASSES)])
    metrics: dict[str, float] = {}

    def update(found: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> None:
        evaluator.update(found, batch)

    return _timed(update, lambda: metrics.update(evaluator.compute()), metrics)


def _official(checkout: str) -> dict[str, float]:
    """Match and score as the checkout's `val.py` does, on its own functions."""
    sys.path.insert(0, checkout)
    if not hasattr(np, "trapz"):  # used there, removed in NumPy 2.4
        setattr(np, "trapz", np.trapezoid)  # noqa: B010
    from utils.metrics import ap_per_class  # type: ignore[import-not-found]
    from val import process_batch  # type: ignore[import-not-found]

    overlaps = torch.linspace(0.5, 0.95, 10)
    kept: list[tuple[Any, ...]] = []
    metrics: dict[str, float] = {}

    def update(found: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> None:
        for rows, padded in zip(found, batch["targets"], strict=True):
            targets = padded[padded[:, 0] >= 0]
            half = targets[:, 3:] / 2
            corners = torch.cat([targets[:, 1:3] - half, targets[:, 1:3] + half], 1) * SIZE
            labels = torch.cat([targets[:, :1], corners], 1)
            kept.append(
                (process_batch(rows, labels, overlaps), rows[:, 4], rows[:, 5], labels[:, 0])
            )

    def compute() -> None:
        columns = [torch.cat(column, 0).numpy() for column in zip(*kept, strict=True)]
        names = {label: str(label) for label in range(CLASSES)}
        _, _, precision, recall, _, ap, _ = ap_per_class(*columns, names=names)
        metrics.update(
            {
                "precision": float(precision.mean()),
                "recall": float(recall.mean()),
                "mAP50": float(ap[:, 0].mean()),
                "mAP50-95": float(ap.mean()),
            }
        )

    return _timed(update, compute, metrics)


def _timed(update: Any, compute: Any, metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics, seconds, and by how many bytes the process grew; data does not count."""
    torch.set_num_threads(1)
    for _ in zip(range(2), batches(), strict=False):  # what making data takes
        pass
    before = resident_peak_bytes()
    seconds = 0.0
    for found, batch in batches():
        start = time.perf_counter()
        update(found, batch)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    compute()
    seconds += time.perf_counter() - start
    grown = resident_peak_bytes() - before
    return {**metrics, "seconds": seconds, "bytes": grown}


def _in_a_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.eval_speed", "--one", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str]) -> None:
    """Measure each evaluator in a process of its own and publish the table."""
    if arguments[:1] == ["--one"]:
        print(json.dumps(_official(arguments[1]) if arguments[1:] else _ours()))
        return
    results = {"memplan": _in_a_process()}
    if arguments:
        results["official"] = _in_a_process(str(Path(arguments[0]).resolve()))
    publish(
        "eval_speed",
        "Detection metrics: time and memory on one core",
        ("", "seconds", "MiB", "P", "R", "mAP50", "mAP50-95"),
        [
            (
                name,
                f"{found['seconds']:.1f}",
                f"{found['bytes'] / MIB:.0f}",
                *(f"{found[key]:.4f}" for key in ("precision", "recall", "mAP50", "mAP50-95")),
            )
            for name, found in results.items()
        ],
        [
            f"{IMAGES:,} made-up images, {DETECTIONS} detections each, {CLASSES} classes, "
            f"{OBJECTS} objects an image. NMS and the network are not in the time.",
            "MiB: by how much the process grew. Precision and recall have one definition in both; "
            "memplan's mAP is pycocotools', the official script's is its own.",
        ],
        "eval_speed CHECKOUT",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
