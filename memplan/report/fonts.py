"""Fonts of pages: one that every machine has, and for other scripts those that this one has."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font

SANS = "DejaVu Sans"  # ships with matplotlib, so every machine draws the same page
MONO = "DejaVu Sans Mono"

# A character of each script that names are written in and that DejaVu lacks.
_SCRIPTS = "模あ한กअবதതకಕમਅ"
# How families are called that are made to write other scripts.
_MADE_FOR_SCRIPTS = (
    "Noto Sans", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback", "IPA", "Takao", "Nanum",
    "Hiragino Sans", "PingFang", "Microsoft YaHei", "SimHei", "MS Gothic", "Malgun Gothic",
    "Arial Unicode MS", "Lohit", "Garuda", "FreeSans", "Unifont",
)  # fmt: skip
_REGULAR = 400


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Return whether a line of matplotlib's is more than that a font has no bold weight."""
    return not str(record.msg).startswith("findfont: Failed to find font weight")


logging.getLogger("matplotlib.font_manager").addFilter(_is_worth_saying)


@functools.cache
def families(family: str = SANS) -> list[str]:
    """Return a family and those installed ones that write what it lacks, in order of preference."""
    return [family, *_fallbacks()]


@functools.cache
def has_glyph(character: str, family: str) -> bool:
    """Return whether a family, or one that stands in for it, can write a character."""
    return any(
        _can_write(findfont(FontProperties(family=one)), character) for one in families(family)
    )


def forget() -> None:
    """Look for fonts anew at the next use, as after another one was installed."""
    for cached in (families, has_glyph, _fallbacks):
        cached.cache_clear()


@functools.cache
def _fallbacks() -> tuple[str, ...]:
    """Return the fewest installed families that write the scripts, as far as there are any."""
    missing = list(_SCRIPTS)
    chosen: list[str] = []
    for entry in _candidates():
        written = [one for one in missing if _can_write(entry.fname, one)]
        if written:
            chosen.append(entry.name)
            missing = [one for one in missing if one not in written]
        if not missing:
            break
    return tuple(chosen)


def _candidates() -> Iterator[FontEntry]:
    """Yield upright fonts of regular weight made for other scripts, TrueType outlines first.

    Others can be embedded too, but some readers warn of them.
    """
    entries = [
        entry
        for entry in fontManager.ttflist
        if entry.name.startswith(_MADE_FOR_SCRIPTS)
        and entry.style == "normal"
        and entry.weight == _REGULAR
    ]
    yield from sorted(entries, key=lambda one: (not _is_truetype(Path(one.fname)), one.name))


def _is_truetype(path: Path) -> bool:
    """Return whether a font, the first one of a collection, has TrueType outlines.

    Source: OpenType 1.9, "Organization of an OpenType font": the tag is `OTTO` for CFF outlines.
    """
    try:
        with path.open("rb") as file:
            tag = file.read(4)
            if tag == b"ttcf":
                file.seek(12)
                file.seek(int.from_bytes(file.read(4), "big"))
                tag = file.read(4)
    except OSError:
        return False
    return tag != b"OTTO"


def _can_write(path: str, character: str) -> bool:
    try:
        return get_font(path).get_char_index(ord(character)) != 0
    except (OSError, RuntimeError):  # a font that was removed, or is broken
        return False
