"""Average precision of detections, by COCO's rules, and what more an evaluation tells.

mAP is pycocotools', with which published numbers are made. Precision and recall are the official
tool's: read at one confidence for all classes, where their smoothed mean F1 is highest.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .coco import Floats, ImageRecord, Matching, PicturedImage, match
from .confusion import confusion_matrix, write_matrix
from .curves import CONFIDENCES, Curves, curves_of, families, write_family
from .nms import non_max_suppression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from memplan.workload import Batch

_MOST_PICTURED = 8  # images of the first batch that are kept to be drawn
_MOST_PRINTED = 50  # classes; more are in per_class.csv only


@dataclass(frozen=True)
class ClassMetrics:
    """How one class was detected."""

    name: str
    num_images: int
    """Images with an object of the class."""
    num_objects: int
    precision: float
    """At the confidence where the smoothed mean F1 of all classes is highest; 0 to 1."""
    recall: float
    """At the same confidence; 0 to 1."""
    map50: float
    """Average precision at an IoU of 0.50."""
    map50_95: float
    """Average precision, mean over IoUs 0.50 to 0.95."""


@dataclass(frozen=True)
class _Outcome:
    """What is computed once of all images."""

    rows: list[ClassMetrics]
    matching: Matching
    curves: Curves


class DetectionEvaluator:
    """Collects detections and objects in the pixels of the original images.

    Args:
        class_names: names by class number.
        subject: what is judged, such as `mask`, where it is not boxes; begins the files' names.
    """

    def __init__(self, class_names: Sequence[str], subject: str = "") -> None:
        self._prefix = f"{subject}_" * bool(subject)
        self._subject = f" of {subject}s" * bool(subject)
        self._class_names = tuple(class_names)
        self._images: dict[int, ImageRecord] = {}
        self._pictured: list[PicturedImage] = []
        self._known: _Outcome | None = None

    @property
    def images(self) -> Mapping[int, ImageRecord]:
        """What was collected, by image number, in the pixels of the original images."""
        return self._images

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add one validation batch.

        Args:
            predictions: raw `[B, 4 + num_classes, A]`, which NMS is run on, or per image the
                detections that NMS left, `[k, 6]`: left, top, right, bottom in pixels of the batch,
                score, class.
            batch: as `YoloData.validation_batches` made it, on any device.
        """
        if isinstance(predictions, torch.Tensor):
            predictions = non_max_suppression(predictions)
        self._known = None
        height, width = batch["images"].shape[-2:]
        targets = batch["targets"].double().cpu().numpy()
        maps = batch["letterbox"].double().cpu().numpy()
        shapes = batch["original_shapes"].tolist()
        for place, image_id in enumerate(batch["image_ids"].tolist()):
            rows = targets[place][targets[place][:, 0] >= 0]
            half = rows[:, 3:5] / 2
            corners = np.concatenate([rows[:, 1:3] - half, rows[:, 1:3] + half], axis=1)
            corners *= (width, height, width, height)
            found = predictions[place].detach().double().cpu().numpy()
            boxes = _to_original(found[:, :4], maps[place])
            original_height, original_width = shapes[place]
            boxes = boxes.clip(0, np.tile([original_width, original_height], 2))
            self._images[image_id] = ImageRecord(
                original_height,
                original_width,
                np.concatenate([rows[:, :1], _to_original(corners, maps[place])], axis=1),
                np.concatenate([boxes, found[:, 4:]], axis=1),
            )
            if len(self._pictured) < _MOST_PICTURED:
                objects = np.concatenate([corners, rows[:, :1]], axis=1)
                self._picture(batch["images"][place], objects, found)

    def add(self, image_id: int, record: ImageRecord) -> None:
        """Add one image whose overlaps are known."""
        self._known = None
        self._images[image_id] = record

    def _picture(self, image: torch.Tensor, objects: Floats, detections: Floats) -> None:
        if image.is_floating_point():  # prepared already
            image = (image * 255).round().to(torch.uint8)
        # A copy: the batch's own memory may be a loader's.
        self._pictured.append(PicturedImage(image.detach().cpu().clone(), objects, detections))

    def compute(self) -> dict[str, float]:
        """Return `precision`, `recall`, `mAP50`, `mAP50-95` and `fitness`, each 0 to 1.

        Means over the classes that have objects; all 0 when there are none. `fitness` is 0.1 mAP50
        + 0.9 mAP50-95, as in the official recipe.
        """
        rows = [row for row in self.per_class() if row.num_objects]
        means = (
            np.mean([(r.precision, r.recall, r.map50, r.map50_95) for r in rows], axis=0)
            if rows
            else np.zeros(4)
        )
        precision, recall, map50, map50_95 = means.tolist()
        return {
            "precision": precision,
            "recall": recall,
            "mAP50": map50,
            "mAP50-95": map50_95,
            "fitness": 0.1 * map50 + 0.9 * map50_95,
        }

    def per_class(self) -> list[ClassMetrics]:
        """Return one row for each class, in the order of their numbers; zeros without objects."""
        return self._outcome().rows

    def curves(self) -> Curves:
        """Return precision, recall and F1 of each class."""
        return self._outcome().curves

    def write_details(self, folder: Path, *, draws: bool) -> str:
        """Write the tables, and pictures if wanted, and return a table by class to print.

        `per_class.csv` always; with `draws`, in `plots/`, curves and confusion matrix as PNG with
        their numbers as CSV, and the first validation images with labels beside predictions.
        """
        metrics = self.compute()
        self._write_table(folder / f"{self._prefix}per_class.csv", metrics)
        if draws:
            self._write_plots(folder / "plots")
        return self._table(metrics)

    def _write_plots(self, plots: Path) -> None:
        from . import charts, pictures

        plots.mkdir(parents=True, exist_ok=True)
        best = float(CONFIDENCES[self.curves().best])
        for family in families(self.curves(), self._class_names):
            path = plots / f"{self._prefix}{family.name}.png"
            write_family(path.with_suffix(".csv"), family)
            charts.save(charts.curve_figure(family, best), path)
        if self._prefix:  # the matrix and the pictures are of boxes
            return
        matrix = confusion_matrix(self._images.values(), len(self._class_names))
        write_matrix(plots / "confusion_matrix.csv", matrix, self._class_names)
        figure = charts.confusion_figure(matrix, self._class_names)
        charts.save(figure, plots / "confusion_matrix.png")
        if self._pictured:
            figure = pictures.predictions_figure(self._pictured, self._class_names)
            charts.save(figure, plots / "validation_batch.png")

    def _write_table(self, path: Path, metrics: dict[str, float]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["class", "images", "instances", "precision", "recall", "mAP50", "mAP50-95"]
            )
            for row in self._all_rows(metrics):
                writer.writerow([*row[:3], *(f"{value:.6f}" for value in row[3:])])

    def _all_rows(self, metrics: dict[str, float]) -> list[tuple[Any, ...]]:
        """Return the row of all classes and one for each."""
        rows = self.per_class()
        names = ("precision", "recall", "mAP50", "mAP50-95")
        total = sum(row.num_objects for row in rows)
        everything = ("all", len(self._images), total, *(metrics[name] for name in names))
        return [
            everything,
            *(
                (r.name, r.num_images, r.num_objects, r.precision, r.recall, r.map50, r.map50_95)
                for r in rows
            ),
        ]

    def _table(self, metrics: dict[str, float]) -> str:
        rows = self._all_rows(metrics)
        is_long = len(rows) - 1 > _MOST_PRINTED
        shown = rows[:1] if is_long else rows
        width = max(len("Class"), *(len(str(row[0])) for row in shown))
        best = CONFIDENCES[self.curves().best]
        title = f"Validation{self._subject} by class (measured)"
        lines = [
            f"{title}; precision and recall at confidence {best:.3f}",
            f"{'Class':{width}}  Images  Instances  Precision  Recall  mAP50  mAP50-95",
        ]
        for name, images, objects, *values in shown:
            numbers = "  ".join(
                f"{value:{size}.3f}" for value, size in zip(values, (9, 6, 5, 8), strict=True)
            )
            lines.append(f"{name:{width}}  {images:6}  {objects:9}  {numbers}")
        if is_long:
            lines.append(f"Each of the {len(rows) - 1} classes has its row in per_class.csv.")
        return "\n".join(lines)

    def _outcome(self) -> _Outcome:
        if self._known is None:
            self._known = self._evaluate()
        return self._known

    def _evaluate(self) -> _Outcome:
        num_classes = len(self._class_names)
        labels = [image.objects[:, 0].astype(int) for image in self._images.values()]
        num_objects = np.bincount(
            np.concatenate([np.zeros(0, int), *labels]), minlength=num_classes
        )
        present = [np.unique(image) for image in labels]
        num_images = np.bincount(
            np.concatenate([np.zeros(0, int), *present]), minlength=num_classes
        )
        matching = match(self._images, num_classes)
        curves = curves_of(matching, num_objects)
        metrics = np.stack(
            [
                curves.precision[:, curves.best],
                curves.recall[:, curves.best],
                matching.precision[0].mean(axis=0),
                matching.precision.mean(axis=(0, 1)),
            ],
            axis=1,
        )
        rows = [
            ClassMetrics(name, int(images), int(objects), *map(float, values))
            for name, images, objects, values in zip(
                self._class_names, num_images, num_objects, metrics, strict=True
            )
        ]
        return _Outcome(rows, matching, curves)


def _to_original(corners: Floats, letterbox: Floats) -> Floats:
    """Return corners in the original image's pixels; letterbox is scale x, scale y, left, top."""
    return np.asarray((corners - np.tile(letterbox[2:], 2)) / np.tile(letterbox[:2], 2))
