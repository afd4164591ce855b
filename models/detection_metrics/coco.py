"""COCO's matching of detections with objects, computed for many images at once.

The rules are pycocotools' own, and tests hold both to the same numbers. pycocotools itself wants a
dictionary for each detection: 1.5 million of them, as COCO's validation set gives, take gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

Floats = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
_Booleans = npt.NDArray[np.bool_]

RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads precision: its own 101 points."""
IOUS = np.linspace(0.5, 0.95, 10)
"""The overlaps that COCO's mean is over."""

_MAX_DETECTIONS = 100  # of a class in an image; COCO's own setting
_MOST_AT_ONCE = 30_000  # detections, so that pairs with objects take some 20 MiB


@dataclass(frozen=True)
class ImageRecord:
    """The objects and detections of one image, in its own pixels."""

    height: int
    width: int
    objects: Floats
    """Rows class, left, top, right, bottom; `[n, 5]`."""
    detections: Floats
    """Rows left, top, right, bottom, score, class; best first, `[k, 6]`."""
    overlaps: Floats | None = None
    """IoU of each detection's mask with each object's, `[k, n]`; None judges by boxes."""


@dataclass(frozen=True)
class PicturedImage:
    """A validation image as the model saw it, with its boxes in that image's pixels."""

    image: torch.Tensor
    """uint8 `[3, h, w]`, RGB."""
    objects: Floats
    """Rows left, top, right, bottom, class."""
    detections: Floats
    """Rows left, top, right, bottom, score, class."""


@dataclass(frozen=True)
class Matching:
    """What becomes of all images' detections; K classes."""

    precision: Floats
    """COCO's interpolated precision `[10, 101, K]` at `IOUS` and `RECALLS`; zeros for a class
    without objects."""
    scores: tuple[Floats, ...]
    """Each class's detections' scores, any order."""
    correct: tuple[_Booleans, ...]
    """Whether each of them found an object at an IoU of 0.50, by the official tool's rule."""


@dataclass(frozen=True)
class _Found:
    """The detections of some images: by image, and in an image the best first."""

    scores: Floats
    labels: _Integers
    hits: _Booleans
    """By COCO's rule, at each of `IOUS`, `[n, 10]`."""
    counted: _Booleans
    """Whether COCO looks at the detection at all."""
    correct: _Booleans
    """By the official tool's rule."""


@dataclass(frozen=True)
class _Pairs:
    """Detections and the objects of their image and class that they overlap by half or more."""

    detection: _Integers
    object: _Integers
    iou: Floats


def match(images: Mapping[int, ImageRecord], num_classes: int) -> Matching:
    """Return COCO's precision, and which detections found an object.

    Args:
        images: by number, which orders detections of equal score.
        num_classes: K, >= 1.
    """
    ordered = [images[number] for number in sorted(images)]
    parts = [_match_some(some, num_classes) for some in _portions(ordered)]
    scores = np.concatenate([np.zeros(0), *(part.scores for part in parts)])
    labels = np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)])
    hits = np.concatenate([np.zeros((0, len(IOUS)), np.bool_), *(part.hits for part in parts)])
    counted = np.concatenate([np.zeros(0, np.bool_), *(part.counted for part in parts)])
    correct = np.concatenate([np.zeros(0, np.bool_), *(part.correct for part in parts)])
    objects = np.concatenate([np.zeros(0), *(image.objects[:, 0] for image in ordered)])
    num_objects = np.bincount(objects.astype(np.int64), minlength=num_classes)
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))[:-1]
    of_class = np.split(np.argsort(labels, kind="stable"), ends)
    precision = np.zeros((len(IOUS), len(RECALLS), num_classes))
    for label, members in enumerate(of_class):
        seen = members[counted[members]]
        if num_objects[label] and len(seen):
            precision[..., label] = _precision(scores[seen], hits[seen], int(num_objects[label]))
    return Matching(
        precision,
        tuple(scores[members] for members in of_class),
        tuple(correct[members] for members in of_class),
    )


def _portions(images: Sequence[ImageRecord]) -> Iterator[list[ImageRecord]]:
    """Yield consecutive images with about `_MOST_AT_ONCE` detections together."""
    some: list[ImageRecord] = []
    total = 0
    for image in images:
        some.append(image)
        total += len(image.detections)
        if total >= _MOST_AT_ONCE:
            yield some
            some, total = [], 0
    if some:
        yield some


def _match_some(images: Sequence[ImageRecord], num_classes: int) -> _Found:
    objects = np.concatenate([image.objects for image in images])
    detections = np.concatenate([image.detections for image in images])
    places = np.arange(len(images)) * num_classes
    # Objects and detections of one image and class have one key.
    object_keys = objects[:, 0].astype(np.int64)
    object_keys += np.repeat(places, [len(image.objects) for image in images])
    labels = detections[:, 5].astype(np.int64)
    keys = labels + np.repeat(places, [len(image.detections) for image in images])
    order = np.lexsort((-detections[:, 4], keys))
    keys, labels, detections = keys[order], labels[order], detections[order]
    object_order = np.argsort(object_keys, kind="stable")
    object_keys, boxes = object_keys[object_order], objects[object_order, 1:]
    detection, other = _of_one_class(keys, object_keys)
    if images[0].overlaps is None:
        iou = _ious(detections[detection, :4], boxes[other])
    else:
        iou = _mask_ious(images, order[detection], object_order[other])
    pairs = _overlapping(detection, other, iou)
    rank = np.arange(len(keys)) - np.searchsorted(keys, keys)
    counted = rank < _MAX_DETECTIONS
    hits = np.zeros((len(keys), len(IOUS)), np.bool_)
    within = counted[pairs.detection]
    _give(_Pairs(*(column[within] for column in vars(pairs).values())), keys, len(boxes), hits)
    return _Found(detections[:, 4], labels, hits, counted, _nearest(pairs, len(keys)))


def _of_one_class(keys: _Integers, object_keys: _Integers) -> tuple[_Integers, _Integers]:
    """Return the places of all detections and objects that have a key in common, in pairs."""
    first = np.searchsorted(object_keys, keys, side="left")
    count = np.searchsorted(object_keys, keys, side="right") - first
    detection = np.repeat(np.arange(len(keys)), count)
    step = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    return detection, first[detection] + step


def _overlapping(detection: _Integers, other: _Integers, iou: Floats) -> _Pairs:
    """Return the pairs, by detection, least overlap first; of like overlap the first object."""
    near = iou >= IOUS[0]
    detection, other, iou = detection[near], other[near], iou[near]
    order = np.lexsort((other, iou, detection))
    return _Pairs(detection[order], other[order], iou[order])


def _ious(one: Floats, other: Floats) -> Floats:
    """Return the overlap of each pair of boxes, by the sums that pycocotools makes of sizes."""
    one_size, other_size = one[:, 2:] - one[:, :2], other[:, 2:] - other[:, :2]
    low = np.maximum(one[:, :2], other[:, :2])
    high = np.minimum(one[:, :2] + one_size, other[:, :2] + other_size)
    common = (high - low).clip(0).prod(axis=1)
    union = one_size.prod(axis=1) + other_size.prod(axis=1) - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))


def _mask_ious(images: Sequence[ImageRecord], detections: _Integers, objects: _Integers) -> Floats:
    """Return the overlap of each pair of masks, given by their places in all images together."""
    known = [image.overlaps for image in images if image.overlaps is not None]
    counts = np.array([one.shape for one in known])
    # Where in one row of numbers a detection's overlaps begin, and how far into it an object is.
    sizes = counts.prod(axis=1)
    starts = np.repeat(np.cumsum(sizes) - sizes, counts[:, 0])
    within = np.arange(len(starts)) - np.repeat(
        np.cumsum(counts[:, 0]) - counts[:, 0], counts[:, 0]
    )
    starts += within * np.repeat(counts[:, 1], counts[:, 0])
    steps = np.arange(counts[:, 1].sum())
    steps -= np.repeat(np.cumsum(counts[:, 1]) - counts[:, 1], counts[:, 1])
    values = np.concatenate([one.ravel() for one in known])
    return np.asarray(values[starts[detections] + steps[objects]], np.float64)


def _give(pairs: _Pairs, keys: _Integers, num_objects: int, hits: _Booleans) -> None:
    """Mark what COCO matches: the best detection of an image and class first takes its object.

    Each takes what it overlaps most among the objects that are left, at every threshold on its own.
    All images and classes take their first turn together, then their second, and so on.
    """
    if not len(pairs.detection):
        return
    starts = np.flatnonzero(np.diff(pairs.detection, prepend=-1))
    takers = pairs.detection[starts]
    turns = np.arange(len(takers)) - np.searchsorted(keys[takers], keys[takers])
    sizes = np.diff(starts, append=len(pairs.detection))
    pair_turns = np.repeat(turns, sizes)
    taken = np.zeros((len(IOUS), num_objects), np.bool_)
    for turn in range(int(turns.max()) + 1):
        chosen = np.flatnonzero(pair_turns == turn)
        objects = pairs.object[chosen]
        free = (pairs.iou[chosen] >= IOUS[:, None]) & ~taken[:, objects]
        now = turns == turn
        begins = np.cumsum(sizes[now]) - sizes[now]
        best = np.maximum.reduceat(np.where(free, np.arange(len(chosen)), -1), begins, axis=1)
        threshold, taker = np.nonzero(best >= 0)
        taken[threshold, objects[best[threshold, taker]]] = True
        hits[takers[now]] = (best >= 0).T


def _nearest(pairs: _Pairs, num_detections: int) -> _Booleans:
    """Return which detections the official tool counts as correct at an IoU of 0.50.

    A detection stands for the object it overlaps most, and of those that stand for one object the
    best is correct. (With COCO, a detection whose object is gone takes another.)
    """
    correct = np.zeros(num_detections, np.bool_)
    last = np.flatnonzero(np.diff(pairs.detection, append=-1))
    _, first = np.unique(pairs.object[last], return_index=True)
    correct[pairs.detection[last[first]]] = True
    return correct


def _precision(scores: Floats, hits: _Booleans, num_objects: int) -> Floats:
    """Return a class's interpolated precision `[10, 101]`."""
    order = np.argsort(-scores, kind="stable")
    true = hits[order].cumsum(axis=0, dtype=np.float64)
    precision = true / (np.arange(1, len(order) + 1)[:, None] + np.spacing(1))
    ceiling = np.maximum.accumulate(precision[::-1])[::-1]
    read = np.zeros((len(IOUS), len(RECALLS)))
    for row, recall, values in zip(read, (true / num_objects).T, ceiling.T, strict=True):
        row[:] = np.append(values, 0.0)[np.searchsorted(recall, RECALLS, side="left")]
    return read
