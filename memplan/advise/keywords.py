"""Keyword arguments of the Python functions, as the questions behind them have them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.advise.also import Also
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.errors import UnknownNameError
from memplan.fit.predictor import Say
from memplan.spec import LEVER, Levers, StepSpec, spec_of
from memplan.tape import Int64
from memplan.units import parse_bytes

Gpu = str | int | Card
"""A card by catalogue name, by index in this machine, or as it is."""
Gpus = list[str] | list[int] | list[Card] | list[Gpu] | tuple[Gpu, ...]
"""Several cards."""


class StepArguments(Levers, total=False):
    """What is trained, beside the levers; see `memplan.probe`."""

    img: int | None
    capacity: int | str | None
    devices: int
    spec: StepSpec | None
    objects_per_image: int | None
    object_counts: Int64 | None
    val_batch: int | None
    multi_scale: bool | None
    arguments: Mapping[str, Any] | None
    calibration: Path | Calibration | None
    cuda_version: str | None
    cudnn_version: str | None
    say: Say


class ProbeArguments(StepArguments, total=False):
    """Keyword arguments of `memplan.probe`."""

    batch: int | Sequence[int]
    mode: str
    half: bool
    data: str | Path | None
    what_if: bool


class PlanArguments(StepArguments, total=False):
    """Keyword arguments of `memplan.plan`."""

    effective_batch: int | None
    images: int | None
    epochs: int | None
    safety: float | None
    also: Collection[Also]
    free: Collection[str] | None
    data: str | Path | None
    workers: int | None
    worker_rate: float | None


def spec_from(
    function: Callable[..., Any], spec: StepSpec | None, levers: Mapping[str, Any]
) -> StepSpec:
    """Return a spec with single levers in place of its own, refused where there is none such."""
    for name in levers:
        if name not in LEVER:
            known = {*inspect.signature(function).parameters, *LEVER} - {"levers"}
            raise UnknownNameError("option", name, known)
    given = spec_of(levers)
    return replace(spec or StepSpec(), **{name: getattr(given, name) for name in levers})


def arguments_from(
    arguments: Mapping[str, Any] | None,
    img: int | None,
    objects_per_image: int | None,
    val_batch: int | None,
    multi_scale: bool | None,
) -> dict[str, Any]:
    """Return the arguments of a workload's factory; None is not given."""
    named = {
        "image_size": img,
        "objects_per_image": objects_per_image,
        "validation_batch_size": val_batch,
        "multi_scale": multi_scale,
    }
    return dict(arguments or {}) | {key: one for key, one in named.items() if one is not None}


def cards_from(gpu: Gpu | Gpus | None) -> tuple[Gpu, ...]:
    """Return the cards; none takes the one in this machine."""
    if gpu is None:
        return ()
    return (gpu,) if isinstance(gpu, str | int | Card) else tuple(gpu)


def bytes_from(capacity: int | str) -> int:
    """Return a capacity in bytes, which may be a text such as `24GiB`."""
    return parse_bytes(capacity) if isinstance(capacity, str) else capacity
