"""A weights file evaluated on a split of a data set: `memplan val`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from memplan.errors import BadInputError, UsageError
from memplan.inference import Validation

from ..detection_metrics.evaluation import ClassMetrics, DetectionEvaluator
from ..detection_metrics.nms import non_max_suppression
from ..detection_metrics.segmentation import SegmentationEvaluator
from ..detection_metrics.written import coco_results, write_rows
from ..yolo_data.batches import read_batches
from ..yolo_data.collate import collate
from ..yolo_data.dataset import read_description
from ..yolo_data.loader import as_single_class, validation_groups, validation_size
from ..yolo_data.masks import outlined
from ..yolo_data.pipeline import ValidationSamples
from ..yolo_data.scan import scan_split
from .arguments import MASK_RATIO
from .detector import load_detector

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from memplan.inference import ValidateOptions
    from memplan.workload import Batch

    from ..yolo_data.batches import Batches
    from ..yolo_data.scan import LabelledImage
    from .detector import Detector


@dataclass
class _Clock:
    """Seconds by stage."""

    totals: dict[str, float] = field(default_factory=dict)

    def stop(self, stage: str, started: float, device: torch.device) -> float:
        """Add the time since `started` to a stage and return the time now."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.totals[stage] = self.totals.get(stage, 0.0) + now - started
        return now


def validate(options: ValidateOptions) -> Generator[str, None, Validation]:
    """Evaluate, yield lines (warnings, the table by class, speed, files) and return the scores.

    Raises:
        BadInputError: weights or data cannot be used, or are of different classes.
        UsageError: an option is out of its range.
    """
    if options.data is None:
        raise UsageError("Give --data, the data.yaml of what is to be evaluated.")
    detector = load_detector(options, options.data if not options.single_class else None)
    description = read_description(options.data)
    names = ("object",) if options.single_class else description.class_names
    if not options.single_class and len(names) != len(detector.class_names):
        raise BadInputError(
            f"{options.weights} is of {len(detector.class_names)} classes, but {options.data} has "
            f"{len(names)}. Give the data.yaml it was trained with."
        )
    scanned = scan_split(description, options.split)
    yield from (*detector.notes, *description.warnings, *scanned.warnings)
    images = [image for image in scanned.images if len(image.labels) >= options.min_items]
    if not images:
        raise BadInputError(
            f"No image of {options.split} has {options.min_items} objects. Lower --min-items."
        )
    if options.single_class:
        images = [as_single_class(image) for image in images]
    if detector.run_masks is not None:
        if options.saves_json:
            raise UsageError("--save-json has boxes alone, and these weights are of masks too.")
        images, warnings = outlined(images, options.data, options.split)
        yield from warnings
    evaluator = (SegmentationEvaluator if detector.run_masks else DetectionEvaluator)(names)
    clock = _Clock()
    for batch in _batches(options, detector, images):
        _evaluate(options, detector, evaluator, batch, clock)
    yield evaluator.write_details(options.folder, draws=options.draws)
    milliseconds = {stage: seconds / len(images) * 1000 for stage, seconds in clock.totals.items()}
    each = ", ".join(f"{took:.1f} ms {stage}" for stage, took in milliseconds.items())
    yield f"An image took {each} (measured, {options.device})"
    yield from _write(options, evaluator, images)
    return Validation(
        scores=evaluator.compute(),
        classes={row.name: _without_name(row) for row in evaluator.per_class() if row.num_objects},
        milliseconds=milliseconds,
        num_images=len(images),
        folder=options.folder,
    )


def _without_name(row: ClassMetrics) -> dict[str, float]:
    return {key: value for key, value in asdict(row).items() if key != "name"}


def _batches(
    options: ValidateOptions, detector: Detector, images: Sequence[LabelledImage]
) -> Batches:
    side = detector.fixed_size or options.image_size
    rect = detector.fixed_size is None and not options.square
    groups = validation_groups(
        images,
        options.batch_size,
        image_size=side,
        padded_size=validation_size(side, detector.stride) if rect else side,
        stride=detector.stride,
        rect=rect,
    )
    ratio = MASK_RATIO if detector.run_masks else 0
    samples = ValidationSamples(images, image_size=side, mask_ratio=ratio)
    return read_batches(samples, groups, collate, options.num_workers, seed=0)


def _evaluate(
    options: ValidateOptions,
    detector: Detector,
    evaluator: DetectionEvaluator | SegmentationEvaluator,
    batch: Batch,
    clock: _Clock,
) -> None:
    now = time.perf_counter()
    raw, prototypes = detector.with_masks(batch["images"])
    num_extra = 0 if prototypes is None else prototypes.shape[1]
    now = clock.stop("inference", now, detector.device)
    if options.single_class:  # the best class stands for all
        scores, extra = raw[:, 4:].tensor_split([raw.shape[1] - 4 - num_extra], 1)
        raw = torch.cat([raw[:, :4], scores.amax(1, keepdim=True), extra], 1)
    found = non_max_suppression(
        raw,
        confidence=options.confidence,
        iou=options.iou,
        max_detections=options.max_detections,
        num_extra=num_extra,
    )
    clock.stop("NMS", now, detector.device)
    evaluator.update(found if prototypes is None else (found, prototypes), batch)


def _write(
    options: ValidateOptions,
    evaluator: DetectionEvaluator | SegmentationEvaluator,
    images: Sequence[LabelledImage],
) -> Iterator[str]:
    if options.saves_txt:
        folder = options.folder / "labels"
        folder.mkdir(exist_ok=True)
        count = 0
        for number, record in evaluator.images.items():
            path = folder / f"{images[number].path.stem}.txt"
            shape = (record.height, record.width)
            if len(record.detections):  # as predict and the official scripts: no empty file
                write_rows(path, record.detections, shape, confidence=options.saves_confidence)
                count += 1
        yield f"Wrote {count} label files to {folder}"
    if options.saves_json:
        path = options.folder / f"{options.weights.stem}_predictions.json"
        rows: list[dict[str, Any]] = []
        is_coco = any("val2017" in str(image.path) for image in images[:1])
        for number, record in evaluator.images.items():
            rows += coco_results(images[number].path.stem, record.detections, is_coco=is_coco)
        path.write_text(json.dumps(rows), encoding="utf-8")
        yield f"Wrote {len(rows)} detections to {path}"
