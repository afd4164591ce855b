"""What was measured on a card itself: a file that replaces the catalogue's context and rates.

Files live in `$XDG_DATA_HOME/memplan/calibrations` (`~/.local/share` by default), one for each
kind of card, and can be shared: they name the kind, no serial number. `memplan gpus --calibrate 0`
writes one; `probe`, `plan` and `train` read it where it exists, or the one `--calibration` names.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from memplan.answer import Answer
from memplan.device.card import Card, Rates
from memplan.errors import BadInputError, BadTapeError
from memplan.files import MIB, Source, decoded, write_text
from memplan.files.structures import NotStructuredError, sealed, unsealed

_AGAIN = "Write it anew with `memplan gpus --calibrate 0` on that card, or remove it."
# What decides how much a process holds and how fast kernels are; others only say who measured.
_MOST_BYTES = 1 << 50
_DECISIVE = ("torch", "cudnn")


@dataclass(frozen=True, kw_only=True)
class Calibration(Answer):
    """Measured figures of one kind of card."""

    SCHEMA: ClassVar[str] = "memplan.calibration/1"

    card: str
    """The catalogue's name, or the one memplan gives a card that the catalogue lacks."""
    device_name: str
    """As the driver says it, such as "NVIDIA H200"."""
    capacity_bytes: int
    driver: str
    versions: dict[str, str]
    """`torch`, `cuda`, `cudnn` and others, under which it was measured."""
    context_bytes: int
    """What a training process holds outside the caching allocator, at most."""
    context_uncertainty_bytes: int = 0
    """Spread of that figure over the measurements, bytes either way."""
    context_bytes_by_phase: dict[str, int] = field(default_factory=dict)
    """After `initialized`, `first_kernel`, `cublas`, `cudnn` and `step`, in turn."""
    library_handle_bytes: dict[str, int] = field(default_factory=dict)
    """What the first use of `cublas` and of `cudnn` added."""
    arithmetic_fraction: dict[str, float] = field(default_factory=dict)
    """By `amp-fp16`, `amp-bf16` and `fp32`; one that is missing was not measured."""
    bandwidth_fraction: float
    launch_seconds: float
    measured_on: str
    """Day, ISO 8601."""
    num_measurements: int = 1
    """Timed stretches of training that the rates were fitted to."""
    median_error_fraction: float = 0.0
    """Median distance of the fitted times from the measured ones, as a part of these."""
    origin: str = "measured"

    def __post_init__(self) -> None:
        """Refuse numbers that no card has.

        Raises:
            ValueError: a figure is out of its range; `load` says which file.
        """
        fractions = [*self.arithmetic_fraction.values(), self.bandwidth_fraction]
        sizes = [self.capacity_bytes, self.context_bytes, self.context_uncertainty_bytes]
        sizes += [*self.context_bytes_by_phase.values(), *self.library_handle_bytes.values()]
        if not all(0 < one <= 1 for one in fractions):
            raise ValueError("a fraction is not in 0-1")
        if not all(type(one) is int and 0 <= one <= _MOST_BYTES for one in sizes):
            raise ValueError("a number of bytes is not a whole number of 0 or more, below 2^50")
        if not 0 < self.launch_seconds < 1:
            raise ValueError("launch_seconds is not above 0 and below 1")
        if not 0 <= self.median_error_fraction < math.inf:
            raise ValueError("median_error_fraction is not 0 or more")
        texts = (self.card, self.device_name, self.driver, self.measured_on, self.origin)
        if not all(text.isprintable() for text in (*texts, *self.versions.values())):
            raise ValueError("a text holds characters that cannot be printed")
        if unknown := set(self.arithmetic_fraction) - {"amp-fp16", "amp-bf16", "fp32"}:
            raise ValueError(f"{unknown.pop()!r} is no precision")

    @property
    def rates(self) -> Rates:
        """What training reaches of the card's peaks; precisions not measured keep the default."""
        default, measured = Rates(), self.arithmetic_fraction
        return Rates(
            fp16_fraction=measured.get("amp-fp16", default.fp16_fraction),
            bf16_fraction=measured.get("amp-bf16", default.bf16_fraction),
            fp32_fraction=measured.get("fp32", default.fp32_fraction),
            bandwidth_fraction=self.bandwidth_fraction,
            launch_seconds=self.launch_seconds,
            is_measured=True,
        )

    def applied_to(self, card: Card) -> Card:
        """Return the card with the measured context and rates in place of the catalogue's."""
        under = ", ".join(f"{name} {self.versions.get(name, '?')}" for name in _DECISIVE)
        measured = card.with_context(
            self.context_bytes,
            self.context_uncertainty_bytes,
            f"and rates measured on {self.measured_on} ({under}; calibration)",
        )
        return replace(measured, rates=self.rates)

    def warnings(self, versions: dict[str, str]) -> tuple[str, ...]:
        """Return a sentence for each library that is now another than was measured under.

        Args:
            versions: of `torch` and `cudnn`, as now installed.
        """
        return tuple(
            f"{self.card} was calibrated under {name} {self.versions[name]}, and {versions[name]} "
            "is installed: context and rates may differ. `memplan gpus --calibrate 0` measures "
            "again."
            for name in _DECISIVE
            if name in self.versions and versions.get(name, "") != self.versions[name]
        )

    def save(self, path: Path) -> None:
        """Write the calibration as JSON, its folder made where it is missing.

        Raises:
            BadInputError: the file cannot be written.
        """
        text = json.dumps(sealed(self.to_json()), indent=1) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            raise BadInputError(f"{path} cannot be written: {error.strerror}.") from None


def load(path: Path) -> Calibration:
    """Return a saved calibration.

    Raises:
        BadTapeError: the file is missing, damaged, no calibration, or of an unknown schema.
    """
    source = Source(
        path=path,
        what="a calibration",
        way_out=_AGAIN,
        missing="`memplan gpus --calibrate 0` writes a calibration.",
        most_bytes=MIB,
        error=BadTapeError,
    )
    try:
        values: Any = unsealed(decoded(source))
    except NotStructuredError as error:
        raise source.bad(error) from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != Calibration.SCHEMA:
        raise BadTapeError(
            f"{path} has schema {schema!r}, but this memplan reads {Calibration.SCHEMA!r}. {_AGAIN}"
        )
    try:
        return Calibration.from_json(values)
    except BadTapeError as error:
        raise BadTapeError(f"{path} is damaged: {error} {_AGAIN}") from None


def folder() -> Path:
    """Return where calibrations are kept.

    Source: XDG Base Directory Specification 0.8; a relative `XDG_DATA_HOME` counts as unset.
    """
    home = Path(os.environ.get("XDG_DATA_HOME", ""))
    base = home if home.is_absolute() else Path.home() / ".local" / "share"
    return base / "memplan" / "calibrations"


def path_of(card_name: str) -> Path:
    """Return the file that holds a card's calibration, whether there is one or not."""
    return folder() / f"{card_name}.json"


def calibration_of(card: Card, path: Path | None = None) -> Calibration | None:
    """Return what was measured on this kind of card, None where nothing was.

    Args:
        card: the card asked about.
        path: a file that must be of this card; None looks where calibrations are kept.

    Raises:
        BadInputError: the file is another card's.
        BadTapeError: the file cannot be read.
    """
    wanted = path_of(card.name) if path is None else path
    if path is None and not wanted.exists():
        return None
    found = load(wanted)
    if found.card != card.name:
        way_out = _AGAIN if path is None else f"Give --gpu {found.card}, or this card's own file."
        raise BadInputError(
            f"{wanted} was measured on {found.card} ({found.device_name}), not on {card.name}. "
            f"{way_out}"
        )
    return found
