"""Tensors that were written to: told by the counter that autograd keeps for each."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Written:
    """Tells whether tensors, or views of them, have been written to since it was made.

    Args:
        tensors: any; those made under `torch.inference_mode` keep no count, and are left out.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._counts = [(one, one._version) for one in tensors if not one.is_inference()]

    def __bool__(self) -> bool:
        return any(one._version != count for one, count in self._counts)
