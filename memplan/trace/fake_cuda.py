"""A CUDA device that is not there: PyTorch dispatches as on a GPU and computes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICE = torch.device("cuda", 0)


class _LeanFakeTensorMode(FakeTensorMode):
    """A fake tensor mode that the compiler need not be told about.

    PyTorch wraps every dispatch mode so that its compiler leaves it alone; the wrapper imports
    the compiler (2 s) and costs a fifth of each operator.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return self.dispatch(func, types, args, kwargs or {})


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Enter a world in which `cuda` tensors have shapes, strides and dtypes but no data.

    Autocast and the gradient scaler ask whether a device is present before they enable
    themselves; inside, the answer is yes.

    Raises:
        RuntimeError: from PyTorch, when its build has no CUDA support compiled in.
    """
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        # Optimizers name their step for the profiler, which would import the compiler (2 s).
        mock.patch("torch.autograd.profiler.record_function", contextlib.nullcontext),
        _LeanFakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode
