"""Imported by the server that memplan's processes are copies of; see `memplan.processes`.

What recording imports when it first runs is named here, so that each process has it from the start.
Nothing is computed: a process that has must not be copied.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os

from memplan.registry import imported_by_families

_MODULES = (
    "torch",
    "memplan.advise.also",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils.flop_counter",
    "torch._dynamo",
    "memplan.step.optimizers",
)


def _of_families() -> list[str]:
    with contextlib.suppress(Exception):
        return imported_by_families()
    return []


def _import_all() -> None:
    """Import the modules, for as long as the process that wants them lives."""
    parent = os.getppid()
    # Importing makes no garbage to speak of, and a hundred thousand objects to look through.
    gc.disable()
    for name in (*_MODULES, *_of_families()):
        if os.getppid() != parent:
            os._exit(0)
        # A module that cannot be imported is reported by whoever needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # The cycle collector would touch, and so copy, every page that the processes share.
    gc.freeze()
    gc.enable()


_import_all()
