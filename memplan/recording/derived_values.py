"""Values that follow from the stated rules by arithmetic: `count.clamp(min=1)` of 0 is 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memplan.recording import operators_list as ops
from memplan.recording.host_values import HostValues
from memplan.recording.interception import Call, Tensor
from memplan.recording.value_rules import ValueRules

DERIVED = ops.ELEMENTWISE | ops.BOUNDING_IN_PLACE
"""Operators through which the stated values are followed."""
MOST_DERIVED = 1024
"""Elements of a result that is followed; programs decide by few."""


class DerivedValues:
    """Computes on the host what operators make of values that nobody computed.

    To be used while the host's own operators pass uncounted.

    Args:
        values: where contents are kept.
        rules: what unknown operands are taken as: what they would be read as.
    """

    def __init__(self, values: HostValues, rules: ValueRules) -> None:
        self._values = values
        self._rules = rules

    def result(
        self, call: Call, result: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Return the result of an operator of `DERIVED` on the host.

        None where it is large, or not finite: the rules state finite numbers only.
        """
        if result.numel() > MOST_DERIVED or not self._values.has_room(result):
            return None
        try:
            host: Any = call.overload(
                *(self._assumed(one) for one in args),
                **{name: self._assumed(one) for name, one in kwargs.items()},
            )
            is_finite = bool(torch.isfinite(host).all())
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
        return host if is_finite else None

    def _assumed(self, value: Any) -> Any:
        """Return an operand's known values, or those that the rules state."""
        if not isinstance(value, Tensor) or not value.is_cuda:
            return value
        content = self._values.content(value)
        if content is not None:
            return self._values.view(value, content).clone()
        if value.dtype is torch.bool:
            return self._rules.mask(value.shape)
        number = self._rules.scalar(value.dtype) if value.numel() == 1 else 0
        return torch.full(value.shape, number, dtype=value.dtype)
