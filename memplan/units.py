"""Bytes, seconds and counts as people read them; the only place that divides by 2^30."""

from __future__ import annotations

import math
import re

from memplan.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_FACTORS = {
    "": 1,
    "B": 1,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


def three_digits(value: float) -> str:
    """Return `value` with three significant digits and never an exponent, such as `17.3`."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def gib(num_bytes: float) -> str:
    """Return bytes as a bare number of GiB, for a column whose header states the unit."""
    return f"{num_bytes / GIB:.2f}"


def format_bytes(num_bytes: float) -> str:
    """Return bytes with the unit that keeps three significant digits, such as `17.3 GiB`."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= factor:
            return f"{three_digits(num_bytes / factor)} {unit}"
    return f"{int(num_bytes)} B"


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it, such as `41 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 1:
        return f"{three_digits(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def parse_bytes(text: str) -> int:
    """Return the bytes a user wrote, such as `24GiB`, `80GB` or `512 MiB`.

    Raises:
        UsageError: the text is no number with a unit, or is not above zero.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not an amount of memory. Write it as 24GiB or 24GB.")
    num_bytes = int(float(match[1]) * factor)
    if num_bytes <= 0:
        raise UsageError(f"{text!r} is no memory at all. Give an amount above zero, such as 24GiB.")
    return num_bytes
