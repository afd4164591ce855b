"""When a script has been watched for long enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Peaks that stood for so many steps are taken as steady.
_STEADY_STEPS = 8
# A validation that comes within so many steps is waited for.
_MOST_WAIT_STEPS = 300
_PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes")


class Enough:
    """Tells when peaks are steady, and waits for a validation that is near.

    Args:
        num_steps: stop after so many optimizer steps; None decides by the peaks.
    """

    def __init__(self, num_steps: int | None) -> None:
        self._num_steps = num_steps
        self.num_evaluations = 0
        """Forward passes of outermost modules without gradients."""
        self._last_steps = 0
        self._num_loaders = 0
        self._left_in_epoch: int | None = None

    def install(self) -> None:
        """Follow the data loaders of this process: how many there are, and how far each is."""
        loader = torch.utils.data.DataLoader
        make, iterate = loader.__init__, loader.__iter__

        def made(this: Any, *args: Any, **kwargs: Any) -> None:
            self._num_loaders += 1
            make(this, *args, **kwargs)

        def iterated(this: Any) -> Any:
            if torch.is_grad_enabled():
                try:
                    self._left_in_epoch = len(this)
                except TypeError:
                    self._left_in_epoch = None
            return iterate(this)

        loader.__init__, loader.__iter__ = made, iterated  # type: ignore[method-assign,assignment]

    @property
    def steps_before_validation(self) -> int | None:
        """Training steps that are left of an epoch after which a validation may come."""
        return self._left_in_epoch if self._num_loaders > 1 and not self.num_evaluations else None

    def begin_forward(self, is_training: bool) -> None:
        """Take note that an outermost module is called."""
        if not is_training:
            self.num_evaluations += 1

    def end_step(self, steps: Sequence[dict[str, int]]) -> bool:
        """Return whether enough has been seen.

        Args:
            steps: what the allocator counted after each optimizer step.
        """
        self._last_steps = len(steps)
        if self._left_in_epoch:
            self._left_in_epoch -= 1
        if self._num_steps is not None:
            return len(steps) >= self._num_steps
        return self._is_steady(steps) and not self._validation_may_come()

    @staticmethod
    def _is_steady(steps: Sequence[dict[str, int]]) -> bool:
        if len(steps) <= _STEADY_STEPS:
            return False
        last, before = steps[-1], steps[-1 - _STEADY_STEPS]
        return all(last[name] == before[name] for name in _PEAKS)

    def _validation_may_come(self) -> bool:
        """Return whether a validation is near enough to wait for."""
        left = self.steps_before_validation
        return left is not None and left + self._last_steps <= _MOST_WAIT_STEPS
