"""A value for each lever of `memplan.spec` that is not its plain one."""

from __future__ import annotations

from typing import Any

from memplan.spec import CHOICE, FLAG, MODULES, NAME, NUMBER, Lever


def other_value(lever: Lever) -> Any:
    """Return a value that a step does not have without being asked."""
    if lever.kind == CHOICE:
        return lever.values[-1]
    return {
        NAME: "Adam",
        FLAG: not lever.plain,
        NUMBER: 3,
        MODULES: ("0",),
    }.get(lever.kind, "expandable_segments:True")
