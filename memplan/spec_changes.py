"""How ways to run a step differ: in number, in options, and all that some choices give."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memplan.spec import LEVERS, StepSpec


def departures(spec: StepSpec, base: StepSpec) -> int:
    """Return in how many levers that only cost speed a spec is not as it was asked to be."""
    return sum(
        getattr(spec, lever.name) != getattr(base, lever.name)
        for lever in LEVERS
        if lever.costs_speed
    )


def variants(base: StepSpec, choices: Mapping[str, Sequence[Any]]) -> Iterator[StepSpec]:
    """Yield every combination of some levers' values, in the order of the table."""
    names = [lever.name for lever in LEVERS if lever.name in choices]
    for values in itertools.product(*(choices[name] for name in names)):
        yield replace(base, **dict(zip(names, values, strict=True)))


def changed_options(spec: StepSpec, base: StepSpec) -> dict[str, str]:
    """Return the options that make a spec of another one, each with its value as typed."""
    changed: dict[str, str] = {}
    for lever in LEVERS:
        value = getattr(spec, lever.name)
        if value != getattr(base, lever.name):
            option, *words = lever.typed(value)
            changed[option] = shlex.join(words)
    return changed
