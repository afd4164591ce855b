"""What a user may ask of the data pipeline, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.errors import BadInputError, UnknownNameError, UsageError

from .hyperparameters import check_hyperparameters, load_hyperparameters

if TYPE_CHECKING:
    from memplan.workload import DataOptions

_EXTRAS = frozenset(
    {
        *("cache", "image_weights", "mask_ratio", "quad", "rect", "rect_validation"),
        *("shrinking", "stride", "validation_size"),
    }
)
_CACHES = ("", "ram", "disk", "val")
_SHRINKING = ("", "linear", "area", "decoder")


def check_options(options: DataOptions) -> None:
    """Check that each option is known, in its range and does not contradict another.

    Raises:
        UnknownNameError: there is no such option.
        BadInputError: a value is not offered.
        UsageError: a number is out of its range, or options exclude each other.
    """
    for name in options.extra or {}:
        if name not in _EXTRAS:
            raise UnknownNameError("data option", name, _EXTRAS)
    if options.image_size < 32 or options.num_workers < 0 or options.min_items < 0:
        raise UsageError(
            f"image_size {options.image_size}, num_workers {options.num_workers}, min_items "
            f"{options.min_items}: the least are 32, 0 and 0."
        )
    extra = options.extra or {}
    cache = extra.get("cache") or ""
    if cache not in _CACHES:
        raise BadInputError(f"cache {cache!r} is not offered. Use ram, disk or val.")
    shrinking = extra.get("shrinking") or ""
    if shrinking not in _SHRINKING:
        raise BadInputError(f"shrinking {shrinking!r} is not offered. Use linear, area or decoder.")
    if extra.get("rect") and extra.get("image_weights"):
        raise UsageError(
            "--rect fixes the order of the images and --image-weights draws it anew. Give one of "
            "them."
        )


def strengths_of(options: DataOptions) -> dict[str, float]:
    """Return all hyperparameters, those not given at scratch-high's values.

    Raises:
        UnknownNameError: there is no such hyperparameter.
        BadInputError: a value is out of its range.
    """
    defaults = load_hyperparameters()
    given = dict(options.hyperparameters or {})
    for name in given:
        if name not in defaults:
            raise UnknownNameError("hyperparameter", name, defaults)
    check_hyperparameters(given, source="hyperparameters")
    return defaults | given
