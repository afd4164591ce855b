"""Operators whose output sizes depend on values, recorded with no values at hand.

Two sources fill the gap. Values that follow from the batch and from constants are known (see
`memplan.trace.values`). What follows from predictions nobody knows; the workload states how many a
mask selects, and what the host is told when it asks (`Workload.num_chosen`, `Workload.answer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memplan import tape
from memplan.errors import BadInputError
from memplan.trace.operators_base import is_here
from memplan.trace.operators_indexing import masked_rows
from memplan.trace.recorder import Recorder
from memplan.trace.values import MASKS, Values, operator_name, real_tensors, run_real, tensors_in
from memplan.workload import Choice, Question, Workload

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a result will be."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...] | None = None


def _rows(tensor: torch.Tensor, rows: int) -> tuple[_Shape, ...]:
    return (_Shape((rows, tensor.dim()), torch.int64, (1, max(rows, 1))),)


def _shapes(name: str, args: Sequence[Any], rows: int) -> tuple[_Shape, ...] | None:
    """Return what an operator gives when it keeps so many; None for one that is not known."""
    tensor = args[0]
    match name:
        case "aten.nonzero":
            return _rows(tensor, rows)
        case "aten.masked_select":
            return (_Shape((rows,), tensor.dtype),)
        case "aten._unique2":
            inverse = len(args) > 2 and args[2]
            counts = len(args) > 3 and args[3]
            return (
                _Shape((rows,), tensor.dtype),
                _Shape(tuple(tensor.shape) if inverse else (0,), torch.int64),
                _Shape((rows if counts else 0,), torch.int64),
            )
        case "torchvision.nms" | "aten.repeat_interleave" | "aten.bincount":
            return (_Shape((rows,), torch.int64),)
    return None


def _masks(indices: Sequence[Any]) -> list[torch.Tensor]:
    return [i for i in indices if isinstance(i, torch.Tensor) and i.dtype in MASKS]


class DynamicRecorder(Recorder):  # type: ignore[no-untyped-call]
    """A recorder for steps whose sizes depend on values.

    Args:
        device: whose memory is recorded.
        fake_mode: the mode in which tensors are fake.
        workload: states what cannot be known.
        micro_batch_size: images of the training batch.
    """

    def __init__(
        self,
        device: torch.device,
        fake_mode: FakeTensorMode,
        workload: Workload,
        micro_batch_size: int,
    ) -> None:
        super().__init__(device, fake_mode)
        self._mode = fake_mode
        self._workload = workload
        self._micro_batch_size = micro_batch_size
        self.values = Values()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, its size known, stated, or refused."""
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._told(args[0])
        if operator_name(func) in _WRITING:
            args = self._with_rows_told(args)
        result = self._chosen(func, args, kwargs)
        if result is NotImplemented:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            self.values.follow(func, args, kwargs, result)
        return result

    def _told(self, tensor: torch.Tensor) -> float:
        """Return the value that the host asks for."""
        value = self.values.of(tensor)
        if value is not None:
            number: float = run_real(aten._local_scalar_dense.default, (value,), {})
            return number
        if tape.PHASES[self._phase] == "optimizer_step":
            return self.stand_in(tensor)
        kind = _kind(tensor.dtype)
        maker = self.values.maker(tensor)
        question = Question(
            type=kind, made_by=maker, module=self._module_path(), section=self.section
        )
        answer = self._workload.answer(question)
        if answer is None:
            raise BadInputError(
                f"The step asks for a value made by {maker or 'an operator'}, which no recording "
                f"knows. State it: let the answer method of {self._workload.name} return it."
            )
        return kind(answer)

    def _module_path(self) -> str:
        if self.modules is None or self.modules.current < 0:
            return ""
        return self.modules.records[self.modules.current].path

    def _chosen(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operator whose size depends on values, or NotImplemented."""
        name = operator_name(func)
        if torch.Tag.dynamic_output_shape not in func.tags and name not in _UNTAGGED:
            return NotImplemented
        if name == "aten.index":
            masks = _masks(args[1])
            return self._indexed(func, args) if masks else NotImplemented
        tensors = tensors_in((*args, *kwargs.values()))
        real = self.values.real((args, kwargs), tensors)
        if real is not None:
            values = tensors_in((run_real(func, *real),))
            shapes = tuple(_Shape(tuple(v.shape), v.dtype, v.stride()) for v in values)
        else:
            values = []
            of_what = args[1] if name in {"aten.masked_select", "torchvision.nms"} else args[0]
            if _shapes(name, args, 0) is None:
                return NotImplemented
            shapes = _shapes(name, args, self._count(name, of_what)) or ()
        outputs = [self._new(shape, tensors[0]) for shape in shapes]
        self._note(func, args, kwargs, outputs)
        for index, output in enumerate(outputs):
            if real is None:
                self.values.forget(output, func)
            else:
                self.values.learn(output, values[index])
        return outputs[0] if len(func._schema.returns) == 1 else tuple(outputs)

    def _count(self, name: str, mask: torch.Tensor) -> int:
        """Return how many a choice keeps, as the workload states.

        Raises:
            BadInputError: it states nothing.
        """
        shape = tuple(mask.shape)
        rows = self._workload.num_chosen(
            Choice(
                operator=name,
                shape=shape,
                made_by=self.values.maker(mask),
                module=self._module_path(),
                section=self.section,
                micro_batch_size=self._micro_batch_size,
            )
        )
        if rows is None:
            raise BadInputError(
                f"The step calls {name} on values of shape {list(shape)} that no recording knows, "
                f"so its output size is unknown. State it: let the num_chosen method of "
                f"{self._workload.name} return it, or set its objects_per_image."
            )
        if not isinstance(rows, int) or rows < 0:
            raise BadInputError(
                f"The num_chosen method of {self._workload.name} returned {rows!r} for {name}. "
                "Let it return a whole number, 0 or more, or None."
            )
        return rows

    def _indexed(self, func: Any, args: Any) -> Any:
        """Return what masks take out of a tensor: positions are found first, then read."""
        tensor, indices = args
        positions: list[Any] = []
        for index in indices:
            if not isinstance(index, torch.Tensor) or index.dtype not in MASKS:
                positions.append(index)
                continue
            rows = self._positions(index)
            size = _Shape((rows,), torch.int64)
            positions += [self._new(size, index) for _ in range(index.dim())]
        result = func(tensor, positions)
        self._note(func, args, {}, [result])
        self.values.follow(func, args, {}, result)
        return result

    def _positions(self, mask: torch.Tensor) -> int:
        """Return how many positions a mask has, counted or stated."""
        known = self.values.of(mask)
        if known is None:
            return self._count("aten.nonzero", mask)
        with real_tensors():
            return int(known.count_nonzero())

    def _with_rows_told(self, args: Any) -> Any:
        """Return a write's arguments, with values broadcast where rules cannot tell how far.

        A mask as an index has as many positions as values are written, unless one serves for all.
        """
        tensor, indices, values = args[:3]
        masks = _masks(indices)
        if not masks or not is_here(values) or masked_rows(*args[:3]) is not None:
            return args
        rows = self._positions(masks[0])
        whole = (
            values.expand(rows, *tensor.shape[masks[0].dim() :]) if len(indices) == 1 else values
        )
        return (tensor, indices, whole, *args[3:])

    def _new(self, shape: _Shape, like: torch.Tensor) -> FakeTensor:
        """Return a fake tensor on the device of another."""
        with real_tensors():
            bare = torch.empty(shape.shape, dtype=shape.dtype, device="meta")
            if shape.stride is not None:
                bare = bare.as_strided(shape.shape, shape.stride)
        place = like.fake_device if isinstance(like, FakeTensor) else like.device
        return FakeTensor(self._mode, bare, place)

    def _note(self, func: Any, args: Any, kwargs: Any, outputs: list[Any]) -> None:
        """Write down what an operator asks of the allocator."""
        if any(self._is_here(tensor) for tensor in outputs):
            result = outputs[0] if len(outputs) == 1 else tuple(outputs)
            self._play(self._cost(func, args, kwargs, result, outputs), outputs)


# Write where masks are true.
_WRITING = {"aten.index_put", "aten.index_put_", "aten._index_put_impl_"}
# Operators of a size that depends on values, though their schema does not say so.
_UNTAGGED = {"torchvision.nms"}


def _kind(dtype: torch.dtype) -> type[bool | int | float]:
    if dtype is torch.bool:
        return bool
    return float if dtype.is_floating_point else int
