"""The least and the most that numbers may be, by option: one table for commands and Python."""

from __future__ import annotations

import math

from memplan.errors import UsageError

_COUNT = 1_000_000

BOUNDS: dict[str, tuple[float, float, str]] = {
    "--accumulate": (1, 65_536, "Give the micro-batches a step."),
    "--assigner-parts": (1, 4096, "Give the parts of a batch, such as 4."),
    "--batch": (1, 65_536, "Give the images of a micro-batch, such as 16."),
    "--batch-per-device": (1, 65_536, "Give the images on each device, such as 16."),
    "--close-mosaic": (0, _COUNT, "0 keeps the mosaics to the end."),
    "--devices": (1, 65_536, ""),
    "--effective-batch": (1, 16_777_216, "Give the images a step, such as 64."),
    "--epochs": (0, _COUNT, "0 only evaluates."),
    "--img": (1, 16_384, "Give pixels, such as 640."),
    "--min-items": (0, _COUNT, "0 keeps all images."),
    "--objects-per-image": (0, 100_000, ""),
    "--patience": (0, _COUNT, "0 never stops early."),
    "--rank-timeout": (0.01, 10_080, "Give minutes, such as 10."),
    "--save-every": (0, _COUNT, "Give minutes; 0 saves whole epochs only."),
    "--save-period": (-_COUNT, _COUNT, "-1 keeps none."),
    "--seed": (0, 2**63 - 1, "Give a whole number of 0 or more."),
    "--tolerance": (0, 1000, ""),
    "--val-batch": (1, 65_536, "Give the images validated at once, such as 32."),
    "--worker-rate": (0, _COUNT, ""),
    "--workers": (0, 1024, "0 loads in the training process."),
}
"""Beyond the most nothing is trained today, and planning or making it would take all memory."""

MOST_BATCHES = 4096
"""Micro-batch sizes asked about at once."""


def check_number(option: str, value: object) -> None:
    """Check a number against its bounds; None and names without bounds pass.

    Args:
        option: as typed, `--batch`.
        value: the number.

    Raises:
        UsageError: it is outside; the message names the bound.
    """
    if option not in BOUNDS or isinstance(value, bool) or not isinstance(value, int | float):
        return
    least, most, hint = BOUNDS[option]
    end = f" {hint}" if hint else ""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{option} {value} is no number.{end or ' Give one.'}")
    if value < least:
        raise UsageError(f"{option} {shown(value)} is below {least:g}.{end}")
    if value > most:
        top = most if isinstance(most, int) else f"{most:g}"
        raise UsageError(f"{option} {shown(value)} is above {top}, the most that is taken.")


def shown(value: float) -> str:
    """Return a number for a message, however many digits it has."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "with its many digits"
    return f"{value}"
