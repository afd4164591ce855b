"""A CUDA device that is not there: PyTorch dispatches as on a GPU and computes nothing."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memplan.device import cudnn_asking
from memplan.trace.operators_attention import scaled_dot_product_attention
from memplan.trace.operators_convolution import select_convolution_backend
from memplan.trace.operators_indexing import one_hot
from memplan.trace.operators_matrix import linear

DEVICE = torch.device("cuda", 0)


class _LeanFakeTensorMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A fake tensor mode that the compiler need not be told about.

    PyTorch wraps every dispatch mode so that its compiler leaves it alone; the wrapper costs a
    fifth of each operator.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return self.dispatch(func, types, args, kwargs or {})


def _new_mode() -> FakeTensorMode:
    mode = _LeanFakeTensorMode(allow_non_fake_inputs=True)
    # The recorder remembers calls itself, and cheaper.
    mode.cache_enabled = False
    return mode


def warm_up() -> None:
    """Start and import what recordings in this process need."""
    cudnn_asking.start()
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    importlib.import_module("torch.utils.flop_counter")
    with fake_cuda():
        torch.nn.functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 1, 1))
    # Modules live as long as the process; the cycle collector need not visit them again.
    gc.freeze()


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
        # On a device, cuDNN is at hand and attention has its kernels.
        mock.patch("torch._C._select_conv_backend", select_convolution_backend),
        mock.patch(
            "torch.nn.functional.scaled_dot_product_attention", scaled_dot_product_attention
        ),
        mock.patch("torch.nn.functional.linear", linear),
        mock.patch("torch.nn.functional.one_hot", one_hot),
        # Optimizers name their step for the profiler, which would import the compiler (2 s).
        mock.patch("torch.autograd.profiler.record_function", contextlib.nullcontext),
        _new_mode() as mode,
    ):
        yield mode
