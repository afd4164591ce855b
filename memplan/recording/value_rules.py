"""What is answered where a value depends on the network's outputs, which nobody computed.

The rules are few and stated to the user:

- a floating-point number that the host reads is `number`; an integer is 0, so that it indexes;
- of a mask (a comparison of such values), the fraction `selected` is true, evenly spread;
- such values are finite: `isfinite` is true everywhere, `isnan` and `isinf` nowhere;
- whole tensors copied to the host are zeros.

A user who knows better names the line that reads and the value it should get.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

# Answers to these are the same for every finite number.
OF_FINITE = {"isfinite": True, "isnan": False, "isinf": False, "isposinf": False, "isneginf": False}


@dataclass(frozen=True, kw_only=True)
class ValueRules:
    """The stated answers."""

    number: float = 2.0
    """A floating-point scalar. Above one, so that `positives.max() > 1` is true."""
    selected: float = 0.01
    """The part of a mask that is true; of anchors about one in a hundred is assigned."""
    at_line: dict[str, float] = field(default_factory=dict)
    """Values for single lines of the script, `file.py:12`; they go before the others."""

    def scalar(self, dtype: torch.dtype) -> float:
        """Return what one number of a type reads as."""
        return self.number if dtype.is_floating_point or dtype.is_complex else 0.0

    def count(self, num_elements: int) -> int:
        """Return how many elements of an unknown mask are true; at least one of any."""
        return min(num_elements, max(1, round(self.selected * num_elements)))

    def mask(self, shape: torch.Size) -> torch.Tensor:
        """Return a mask of a shape with its true elements evenly spread, on the CPU."""
        total = shape.numel()
        mask = torch.zeros(total, dtype=torch.bool)
        if total:
            mask[torch.linspace(0, total - 1, self.count(total), dtype=torch.float64).long()] = True
        return mask.view(shape)
