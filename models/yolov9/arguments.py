"""What a YOLOv9 workload may be made with: configuration, numbers and hyperparameters, checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import UnknownNameError, UsageError
from memplan.files import Source, in_checkout

from . import names

if TYPE_CHECKING:
    from collections.abc import Mapping

CFG_FOLDER = Path(__file__).parent / "cfg"
MASK_RATIO = 4  # pixels of an image a pixel of its masks; Source: the official --mask-ratio
MASK_HEADS = frozenset({"Segment", "DSegment", "DualDSegment"})
STRIDE = 32  # pixels a cell of the coarsest level, of every shipped configuration
_MOST_CLASSES = 100_000


def check_arguments(num_classes: int, image_size: int, objects_per_image: int) -> None:
    """Refuse numbers that no network can be made with.

    Raises:
        UsageError: one is out of its range.
    """
    if num_classes < 1:
        raise UsageError(f"num_classes {num_classes} is below 1.")
    if num_classes > _MOST_CLASSES:
        raise UsageError(f"num_classes {num_classes} is above {_MOST_CLASSES}, the most there are.")
    if objects_per_image < 0:
        raise UsageError(f"--objects-per-image {objects_per_image} is below 0.")
    if image_size < STRIDE or image_size % STRIDE:
        nearest = max(STRIDE, round(image_size / STRIDE) * STRIDE)
        raise UsageError(
            f"--img {image_size} is no multiple of the stride {STRIDE}. Nearest: {nearest}."
        )


def is_file_name(text: str) -> bool:
    """Return whether a configuration is named as a file and not by its name."""
    return Path(text).suffix in {".yaml", ".yml"}


def find_cfg(cfg: str) -> str:
    """Return a configuration's name or an existing file's path.

    The official repository's paths, such as `models/detect/yolov9-s.yaml`, mean what ships here
    where there is no such file.

    Raises:
        UnknownNameError: there is no such configuration; the nearest is suggested.
    """
    if is_file_name(cfg) and (file := in_checkout(Path(cfg))).is_file():
        return str(file)
    name = Path(cfg).stem if is_file_name(cfg) else cfg
    if name not in names():
        hint = f"Known: {', '.join(names())}; or a PATH.yaml."
        raise UnknownNameError("model", cfg, names(), hint)
    return name


def has_masks(cfg: str) -> bool:
    """Return whether a configuration, or a description's file, ends in a head with masks.

    Raises:
        UnknownNameError: there is no such configuration.
        BadInputError: the file cannot be read.
    """
    found = find_cfg(cfg)
    path = Path(found) if is_file_name(found) else CFG_FOLDER / f"{found}.yaml"
    content = Source(path=path, what="a model description").yaml()
    match content:
        case {"head": [*_, [_, _, str(name), *_]]}:
            return name in MASK_HEADS
    return False


def merged(values: dict[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Return hyperparameters with those that were given in place of their own.

    Raises:
        UnknownNameError: one is none of them.
        BadInputError: one is out of its range.
    """
    from ..yolo_data.hyperparameters import check_hyperparameters

    for name in given:
        if name not in values:
            raise UnknownNameError("hyperparameter", name, values)
    check_hyperparameters(dict(given), source="hyperparameters")
    return values | dict(given)
