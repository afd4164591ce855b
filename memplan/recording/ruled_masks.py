"""Masks over values that nobody computed, and what follows from them by rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memplan.recording import operators_list as ops
from memplan.recording.host_values import HostValues
from memplan.recording.interception import Call, Tensor, tensors_in
from memplan.recording.value_rules import OF_FINITE, ValueRules

RULED = frozenset({*OF_FINITE, *ops.COMPARISONS, *ops.MASK_SUMMARIES})
"""Operators whose results get content by rule where their inputs have none."""
# No content is made for larger masks; their length is enough.
_MOST_ELEMENTS = 1 << 20


class _UnknownError(Exception):
    """An operand's values neither are known nor follow from a rule."""


class RuledMasks:
    """Gives the results of operators on unknown values the content that the rules state.

    To be used while the host's own operators pass uncounted.

    Args:
        values: where contents are kept.
        rules: what they are.
    """

    def __init__(self, values: HostValues, rules: ValueRules) -> None:
        self._values = values
        self._rules = rules

    def note(self, call: Call, result: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Take the result of an operator of `RULED` on unknown values as the rules have it."""
        finite = OF_FINITE.get(call.name, _told_by_finiteness(call.name, args))
        if finite is not None:
            self._values.keep_constant(result, finite)
        elif call.name in ops.COMPARISONS:
            self._note_comparison(call, result, args, kwargs)
        elif call.name in ops.MASK_SUMMARIES and args[0].dtype is torch.bool:
            self._note_summary(call.name, result, args[0])
        elif call.name in ops.MASK_SUMMARIES and _is_whole(args[0]) and _is_small(result):
            # Integers are 0, as a library's report that all went well.
            zeros = torch.zeros(result.shape, dtype=result.dtype)
            self._values.keep(result, zeros, by_rule=True)

    def are_constant(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether each of some masks is one value throughout."""
        contents = (self._values.content(tensor) for tensor in tensors)
        return all(content is not None and content.host is None for content in contents)

    def note_constant(self, call: Call, result: Tensor, args: Sequence[Any]) -> None:
        """Take the result of an operator on masks of one value each, however large they are."""
        contents = (self._values.content(one) for one in tensors_in(args))
        values = [torch.tensor(one.constant) for one in contents if one is not None]
        # Whichever overload was called, one that takes `out` perhaps, the operator is the same.
        operator = getattr(torch.ops.aten, call.name)
        self._values.keep_constant(result, bool(operator(*values)))

    def _note_comparison(
        self, call: Call, result: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        try:
            operands = [self._assumed(one) if isinstance(one, Tensor) else one for one in args]
        except _UnknownError:
            if not _is_small(result):
                return
            host = self._rules.mask(result.shape)
        else:
            if not _is_small(result):
                return
            host = call.overload(*operands, **kwargs)
        self._values.keep(result, host, by_rule=True)

    def _assumed(self, tensor: Tensor) -> Tensor:
        """Return an operand's values, or those the rules state for a single number or integers."""
        content = self._values.content(tensor) if tensor.is_cuda else None
        if content is not None or not tensor.is_cuda:
            return tensor if content is None else self._values.view(tensor, content)
        if tensor.numel() == 1 or not tensor.dtype.is_floating_point:
            value = self._rules.scalar(tensor.dtype)
            return torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)
        raise _UnknownError

    def _note_summary(self, name: str, result: Tensor, mask: Tensor) -> None:
        """Give the summary of an unknown mask, over all of it, its value."""
        if result.numel() != 1 or mask.numel() <= 1:
            return
        answers = {"all": 1, "min": 1, "any": 1, "max": 1}
        value = answers.get(name, self._rules.count(mask.numel()))
        self._values.keep(result, torch.full(result.shape, value).to(result.dtype), by_rule=True)


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= _MOST_ELEMENTS


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _told_by_finiteness(name: str, args: Sequence[Any]) -> bool | None:
    """Return what a comparison is for every finite number: `x == x`, `x.abs() != inf`.

    So PyTorch composes `isfinite`, `isnan` and `isinf`.
    """
    if name not in {"eq", "ne"} or len(args) < 2:
        return None
    one, other = args[0], args[1]
    if one is other:
        return name == "eq"
    is_infinite = isinstance(other, (int, float)) and abs(other) == float("inf")
    return name == "ne" if is_infinite else None
