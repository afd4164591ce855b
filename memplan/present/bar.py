"""Categories of memory as one line of letters: it needs no colour and no more than 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH = 78
LETTERS = {
    "parameter": "P",
    "optimizer_state": "O",
    "gradient": "G",
    "input": "I",
    "activation": "A",
    "workspace": "W",
    "temporary": "T",
    "unattributed": "U",
    "cached": "c",
    "context": "x",
}
"""Capitals are tensors; what the allocator and the driver add is small."""


def category_bar(categories: Mapping[str, int], width: int = WIDTH) -> str:
    """Return a bar as wide as asked in which each category takes its share; empty of nothing.

    Ends are rounded, so that small neighbours may share a column and no byte is counted twice.

    Args:
        categories: bytes by name; names without a letter are unattributed.
        width: columns, the two ends not counted.
    """
    shares: dict[str, int] = {}
    for name, num_bytes in categories.items():
        letter = LETTERS.get(name, LETTERS["unattributed"])
        shares[letter] = shares.get(letter, 0) + max(num_bytes, 0)
    total = sum(shares.values())
    if not total:
        return ""
    ordered = [letter for letter in LETTERS.values() if letter in shares]
    text, done, column = "", 0, 0
    for letter in ordered:
        done += shares[letter]
        end = round(width * done / total)
        text += letter * (end - column)
        column = end
    return f"[{text}]"


def bar_key(bar: str) -> str:
    """Return what the letters of a bar stand for, those that occur."""
    names = {letter: name.replace("_", " ") for name, letter in LETTERS.items()}
    return ", ".join(f"{letter} {name}" for letter, name in names.items() if letter in bar)
