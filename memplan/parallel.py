"""Work spread over a few forked processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Set just before forking, so that functions need not be picklable.
_function: Callable[[Any], Any] | None = None


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def fork_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the function's result for each item, in order, using the machine's cores.

    Forking shares what is already imported, so a process costs milliseconds. On one core, for one
    item, or in a process that may not have children, it is a plain loop.

    Args:
        function: may be a closure; runs in a copy of this process, so its side effects are lost.
        items: what it is called with.

    Raises:
        Exception: whatever the function raises, from the first item in order that failed.
    """
    global _function  # noqa: PLW0603 - forked children find the function here
    workers = min(num_cores(), len(items), 8)
    if workers < 2 or multiprocessing.current_process().daemon:
        return [function(item) for item in items]
    _function = function
    try:
        # Short-lived children need no cycle collection, which would touch and so copy every page.
        with multiprocessing.get_context("fork").Pool(workers, initializer=gc.disable) as pool:
            return list(pool.map(_call, items, chunksize=1))
    finally:
        _function = None
