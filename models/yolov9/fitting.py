"""Which shipped configuration the entries of a weights file belong to."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from . import build, names
from .weights import facts_of, read_checkpoint, state_of_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FEW_ENTRIES = 0.5  # of a network; with fewer loaded, it is hardly the file's


def fitting_configuration(state: dict[str, Tensor]) -> tuple[str, int, int]:
    """Return the configuration that most entries fit: its name, how many fit, of how many.

    Args:
        state: entries of a weights file by name.
    """
    classes = {len(value) for name, value in state.items() if _is_class_bias(name)}
    num_classes = next(iter(classes)) if len(classes) == 1 else None
    found = []
    for name in names():
        own = _shapes(name, num_classes)
        matched = sum(k in state and state[k].shape == shape for k, shape in own.items())
        found.append((name, matched, len(own)))
    return max(found, key=lambda one: (one[1] / one[2], one[1]))


@functools.cache
def _shapes(name: str, num_classes: int | None) -> dict[str, torch.Size]:
    """Return the shape of each entry of a configuration, which takes a second to build."""
    with torch.device("meta"):
        return {k: v.shape for k, v in build(name, num_classes).state_dict().items()}


def _is_class_bias(name: str) -> bool:
    parts = name.split(".")
    return name.endswith(".2.bias") and not {"cv3", "cv5", "cv7"}.isdisjoint(parts)


def configuration_of(path: Path) -> str | None:
    """Return the configuration that a weights file fills; None where there is none.

    Raises:
        BadInputError: the file cannot be read, or holds no weights.
    """
    content = read_checkpoint(path)
    facts = facts_of(content)
    if facts.cfg is not None:
        return facts.cfg
    name, matched, total = fitting_configuration(state_of_checkpoint(content, path)[1])
    return name if matched == total else None


def advice(path: str | Path) -> str:
    """Return which configuration a weights file fits, as advice."""
    state = state_of_checkpoint(read_checkpoint(path), path)[1]
    name, matched, total = fitting_configuration(state)
    if matched / total < FEW_ENTRIES:
        return "It fits no configuration here; is it of another program?"
    return f"It fits --cfg {name} ({matched} of {total})."
