"""Sizes that follow from values: those that a recording stated, told to the phantom's step.

A phantom card computes nothing, so it knows no more than a recording how many proposals a detector
keeps. Both take the workload's word: `noted_sizes` writes down what a recording was told, in order,
and `ToldWorkload` gives the same answers to PyTorch's own host code when it asks. Every answer is
checked to be asked for by the same operator, and all of them to be used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.phantom_life import Told
from memplan.errors import MemplanError
from memplan.phantom import control
from memplan.recording import operators_list as ops
from memplan.recording.interception import (
    Call,
    Kernel,
    intercept,
    operator_name,
    overloads,
    tensors_in,
)
from memplan.trace.dynamic import DynamicRecorder
from memplan.trace.operators_indexing import masked_rows
from memplan.workload import Batch, Workload

_NUMBER = "_local_scalar_dense"
_DRAWN = "uniform_"  # on the host, which computes for real
# Their results' length follows from a mask whose positions they look for themselves.
_SELECTING = frozenset({"masked_select", "torchvision::nms"})
_WRITING = frozenset({"index_put", "index_put_", "_index_put_impl_"})


@contextmanager
def noted_sizes() -> Iterator[list[Told]]:
    """Write down what the micro-batch of a recording inside is told, in order."""
    found: list[Told] = []

    def is_noted(recorder: DynamicRecorder) -> bool:
        return recorder.section == "micro_batch"

    def chosen(recorder: Any, func: Any, args: Any, kwargs: Any) -> Any:
        result = of["_chosen"](recorder, func, args, kwargs)
        name = operator_name(func)
        if is_noted(recorder) and result is not NotImplemented and name != "index":
            found.append((name, next(tensors_in(result)).shape[0]))
        return result

    def positions(recorder: Any, mask: torch.Tensor) -> int:
        rows: int = of["_positions"](recorder, mask)
        if is_noted(recorder):
            found.append(("nonzero", rows))
        return rows

    def told(recorder: Any, tensor: torch.Tensor) -> float:
        number: float = of["_told"](recorder, tensor)
        if is_noted(recorder) and tensor.is_cuda:
            found.append((_NUMBER, number))
        elif is_noted(recorder) and recorder.values.maker(tensor) == f"aten.{_DRAWN}":
            found.append((_DRAWN, number))
        return number

    new = {"_chosen": chosen, "_positions": positions, "_told": told}
    of = {name: getattr(DynamicRecorder, name) for name in new}
    with patch.multiple(DynamicRecorder, **new):
        yield found


class _Answers(threading.local):
    """What a thread's running operator answers the reads inside it with."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.is_read = False


class ToldSizes:
    """Answers what PyTorch asks of a phantom card in a forward and backward pass.

    Operators are intercepted for good in this process.
    """

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._next = 0
        self._here = _Answers()
        kernels = ((one, self._kernel(one)) for one in overloads())
        self._libraries = [intercept((one, kernel) for one, kernel in kernels if kernel)]
        nms = torch.ops.torchvision.nms.default
        self._libraries.append(intercept(iter([(nms, self._selecting(Call(nms)))]), "torchvision"))

    def begin(self, told: Sequence[Told]) -> None:
        """Answer from now on what a recording of the same work was told, in order.

        Raises:
            MemplanError: something before was not asked for.
        """
        self.end()
        self._told = [(str(name), number) for name, number in told]
        self._next = 0

    def end(self) -> None:
        """See that all answers were used.

        Raises:
            MemplanError: some were not.
        """
        if self._is_asked:
            name, number = self._told[self._next]
            raise MemplanError(f"Nothing asked the phantom card for {name}, recorded as {number}.")

    def forget(self) -> None:
        """Answer nothing any more."""
        self._told, self._next = [], 0

    @property
    def _is_asked(self) -> bool:
        """Whether answers are left."""
        return self._next < len(self._told)

    def _take(self, name: str) -> float:
        """Return the next answer.

        Raises:
            MemplanError: it was recorded for another operator.
        """
        recorded, number = self._told[self._next]
        if recorded != name:
            raise MemplanError(f"The phantom card is asked for {name}, recorded: {recorded}.")
        self._next += 1
        return number

    def _kernel(self, overload: torch._ops.OpOverload) -> Kernel | None:
        name = operator_name(overload)
        makers: dict[str, Callable[[Call], Kernel]] = {_NUMBER: self._number, _DRAWN: self._drawn}
        makers |= dict.fromkeys(ops.DATA_SIZED, self._sized)
        makers |= dict.fromkeys(_SELECTING, self._selecting)
        makers |= dict.fromkeys(_WRITING, self._writing)
        return makers[name](Call(overload)) if name in makers else None

    def _sized(self, call: Call) -> Kernel:
        """Return the kernel of an operator that reads the length of its own result."""

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if not args[0].is_cuda or not (self._here.inside or self._is_asked):
                return call.run(keyset, args, kwargs)
            rows = self._here.inside[-1] if self._here.inside else int(self._take(call.name))
            control.queue_read(rows.to_bytes(ops.DATA_SIZED[call.name], "little"))
            outer, self._here.is_read = self._here.is_read, True
            result = call.run(keyset, args, kwargs)
            self._here.is_read = outer
            control.clear_reads()
            return result

        return kernel

    def _selecting(self, call: Call) -> Kernel:
        """Return the kernel of an operator that looks for a mask's positions itself."""
        name = call.name

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if self._here.inside or not (args[0].is_cuda and self._is_asked):
                return call.run(keyset, args, kwargs)
            with self._within(int(self._take(name))):
                return call.run(keyset, args, kwargs)

        return kernel

    def _writing(self, call: Call) -> Kernel:
        """Return the kernel of an operator that writes where masks are true, as many as it gets."""

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            rows = masked_rows(*args[:3]) if args[0].is_cuda else None
            if rows is None:
                return call.run(keyset, args, kwargs)
            with self._within(rows):
                return call.run(keyset, args, kwargs)

        return kernel

    @contextmanager
    def _within(self, rows: int) -> Iterator[None]:
        self._here.inside.append(rows)
        yield
        self._here.inside.pop()

    def _number(self, call: Call) -> Kernel:
        """Return the kernel that gives the host a number."""

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if not args[0].is_cuda or self._here.is_read or not self._is_asked:
                return call.run(keyset, args, kwargs)
            dtype = args[0].dtype
            number = self._take(_NUMBER)
            if dtype is torch.bool:
                return bool(number)
            return number if dtype.is_floating_point else int(number)

        return kernel

    def _drawn(self, call: Call) -> Kernel:
        """Return the kernel that draws a number on the host."""

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            result = call.run(keyset, args, kwargs)
            if not args[0].is_cuda and self._is_asked:
                args[0].fill_(self._take(_DRAWN))
            return result

        return kernel


def tell(workload: Workload, told: Sequence[Told]) -> ToldSizes:
    """Let a workload's steps run with the sizes that a recording was told; return who tells them.

    Intercepts operators for good, so that a process lives one life.
    """
    sizes = ToldSizes()
    compute_loss = workload.compute_loss

    def with_sizes(model: torch.nn.Module, batch: Batch) -> Any:
        sizes.begin(told)
        return compute_loss(model, batch)

    workload.compute_loss = with_sizes  # type: ignore[method-assign]
    return sizes
