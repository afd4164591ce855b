"""Values that came from the host survive on a card that computes nothing.

Each operator of `operators_list` is intercepted below autograd: PyTorch's own kernel runs as ever
and allocates what it allocates; beside it, when all inputs are known, the same operator runs on the
host's copies (`HostValues`), and its results become the content of the device's. Reads by the host
(`.item()`, `.cpu()`, the sizes of `nonzero` and `unique`) then deliver these values, or what
`ValueRules` states.

No dispatch mode is used, which would change backward formulas: kernels are registered for the
`BackendSelect` key, which every call passes after autograd and before the device's kernel.
Source: PyTorch's `c10/core/DispatchKey.h` and `torch.library` documentation.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from memplan.phantom import control
from memplan.recording import operators_list as ops
from memplan.recording.host_values import HostValues
from memplan.recording.sites import script_line
from memplan.recording.value_rules import OF_FINITE, ValueRules

_DISPATCH = torch._C.DispatchKey
_RULED = {*OF_FINITE, *ops.COMPARISONS, *ops.MASK_SUMMARIES}
_BELOW = torch._C._dispatch_keyset_full_after(_DISPATCH.BackendSelect)
# A line that reads so often between two steps waits for something.
_MOST_READS_A_STEP = 20_000
Kernel = Callable[..., Any]
Tensor = torch.Tensor


class _Unknown(Exception):
    """An input's values are not known."""


class _Call:
    """One overload of an operator: what it reads and writes, and how it is run."""

    def __init__(self, overload: torch._ops.OpOverload) -> None:
        self.overload = overload
        self.name = overload._schema.name.removeprefix("aten::")
        arguments = overload._schema.arguments
        self.names = [argument.name for argument in arguments]
        self.written = {
            argument.name
            for argument in arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        overwrites = self.name in ops.OVERWRITES or any(one.is_out for one in arguments)
        self._not_read = self.written if overwrites else set()
        self._tensors = [i for i, one in enumerate(arguments) if str(one.type) == "Tensor"]
        self._redispatch = overload._handle.redispatch_boxed

    def run(self, keyset: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run what would have run without interception."""
        keys = keyset & _BELOW
        for position in self._tensors:
            if position < len(args) and not isinstance(args[position], Tensor):
                return self._run_with_number(keys, args, kwargs)
        return self._redispatch(keys, *args, **kwargs)

    def _run_with_number(self, keys: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a call one of whose tensors arrives as a number, as Python kernels are handed them."""
        operands = args[1:] if self.name == "where" else args
        others = [one for one in operands if isinstance(one, Tensor)]
        tensors = [
            _as_tensor(one, others)
            if position in self._tensors and not isinstance(one, Tensor)
            else one
            for position, one in enumerate(args)
        ]
        return self._redispatch(keys, *tensors, **kwargs)

    def reads(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """Yield the device tensors whose values are read."""
        not_read = self._not_read
        for name, value in zip(self.names, args, strict=False):
            if name not in not_read:
                yield from _device_tensors(value)
        for name, value in kwargs.items():
            if name not in not_read:
                yield from _device_tensors(value)

    def writes(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the device tensors that are written."""
        named = (*zip(self.names, args, strict=False), *kwargs.items())
        return [one for name, value in named if name in self.written for one in _device_tensors(value)]


def _as_tensor(number: Any, others: Sequence[Tensor]) -> Tensor:
    """Return a number as a tensor that leaves the result's dtype as the number would have.

    Source: `torch.result_type`: a number decides only when its kind is higher than the tensors';
    so does a tensor of no dimension beside one that has some.
    """
    if not others:
        return torch.tensor(number)
    other = max(others, key=Tensor.dim)
    if torch.result_type(other, number) != other.dtype:
        return torch.tensor(number)
    if other.dim() and isinstance(number, float):
        return torch.tensor(number, dtype=torch.float64)
    return torch.tensor(number, dtype=None if other.dim() else other.dtype)


def _device_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_cuda:
            yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            if isinstance(one, Tensor) and one.is_cuda:
                yield one


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors_in(one)


def _pairs(device: Any, host: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tensors that stand in the same place of two results; some kernels leave places empty."""
    if isinstance(device, Tensor) and isinstance(host, Tensor):
        yield device, host
    elif isinstance(device, (list, tuple)) and isinstance(host, (list, tuple)):
        for one, other in zip(device, host, strict=False):
            yield from _pairs(one, other)


def _touches_device(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    for value in args:
        if isinstance(value, Tensor):
            if value.is_cuda:
                return True
        elif isinstance(value, (list, tuple)) and next(_device_tensors(value), None) is not None:
            return True
    return bool(kwargs) and any(_touches_device((value,), {}) for value in kwargs.values())


class KnownValues:
    """Keeps the values that came from the host, and answers the host's reads.

    Args:
        rules: what is answered where values depend on the network's outputs.
    """

    def __init__(self, rules: ValueRules) -> None:
        self.rules = rules
        self.values = HostValues()
        self.num_from_host = 0
        self.by_rule: Counter[tuple[str, str]] = Counter()
        """Reads answered by rule, by line of the script and by what was answered."""
        self.moving: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while a tensor moves from the host to the device."""
        self._since_step: Counter[str] = Counter()
        self._state: set[int] = set()
        self._here = threading.local()
        self._library: torch.library.Library | None = None

    def install(self) -> None:
        """Intercept the operators in this process, for good."""
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # Registering over a kernel warns once; that is what is meant here.
            warnings.simplefilter("ignore")
            for overload in _all_overloads():
                kernel = self._kernel_for(overload)
                if kernel is not None:
                    name = _full_name(overload).removeprefix("aten::")
                    self._library.impl(name, kernel, "BackendSelect", with_keyset=True)

        self._follow_modules()

    def _follow_modules(self) -> None:
        """Take what modules hold as unknown when they move: weights decide no size, and change."""
        move = torch.nn.Module._apply

        def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            outer = self._state
            self._state = {id(one) for one in (*module.parameters(), *module.buffers())} | outer
            try:
                return move(module, *args, **kwargs)
            finally:
                self._state = outer

        torch.nn.Module._apply = moved  # type: ignore[method-assign]

    # -- which kernel

    def _kernel_for(self, overload: torch._ops.OpOverload) -> Kernel | None:
        name = overload._schema.name.removeprefix("aten::")
        call = _Call(overload)
        if name == "_local_scalar_dense":
            return self._intercepted(call, self._read_scalar)
        if name == "_to_copy":
            return self._moved(call)
        if name == "copy_":
            return self._intercepted(call, self._copy)
        if name in ops.DATA_SIZED and not call.written:
            return self._intercepted(call, self._data_sized)
        is_listed = name in ops.FUNCTIONAL | ops.IN_PLACE | ops.FACTORIES
        if is_listed and (call.written or name in ops.FUNCTIONAL):
            return self._intercepted(call, self._computed)
        if call.written and name not in ops.KEEPS_VALUES:
            return self._intercepted(call, self._forgetting)
        return None

    def _intercepted(self, call: _Call, handle: Kernel) -> Kernel:
        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self._here, "is_host", False) or not _touches_device(args, kwargs):
                return call.run(keyset, args, kwargs)
            return handle(call, keyset, args, kwargs)

        return kernel

    def _moved(self, call: _Call) -> Kernel:
        """Return the kernel that tells of moves to the device; the copy inside has the values."""

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            device = kwargs.get("device")
            if device is None or args[0].is_cuda or torch.device(device).type != "cuda":
                return call.run(keyset, args, kwargs)
            self._here.is_state = id(args[0]) in self._state
            with self.moving():
                result = call.run(keyset, args, kwargs)
            self._here.is_state = False
            return result

        return kernel

    @contextmanager
    def _on_host(self) -> Iterator[None]:
        """Let everything inside pass, as it works on the host's copies.

        One thread does: the copies are small, and waiting for a second costs more than it helps.
        """
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._here.is_host = True
        try:
            yield
        finally:
            self._here.is_host = False
            torch.set_num_threads(num_threads)

    # -- what becomes of values

    def _computed(self, call: _Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on the device and, where its inputs are known, on the host's copies."""
        content = self.values.content
        for tensor in call.reads(args, kwargs):
            if content(tensor) is None:
                result = call.run(keyset, args, kwargs)
                if call.written or call.name in _RULED:
                    self._note_unknown(call, result, args, kwargs)
                return result
        reads = list(call.reads(args, kwargs))
        if reads and call.name in ops.MASK_LOGIC and self._constants(reads):
            return self._computed_constant(call, keyset, args, kwargs)
        result = call.run(keyset, args, kwargs)
        found = None
        if all(self.values.has_room(one) for one in _tensors_in(result)):
            found = self._host_result(call, args, kwargs)
        if found is None:
            self._forget(call.writes(args, kwargs))
        else:
            self._keep(result, found[0], by_rule=found[1], is_fresh=not call.written)
        return result

    def _keep(self, result: Any, host: Any, *, by_rule: bool, is_fresh: bool) -> None:
        """Take the host's results as the content of the device's, where their shapes agree."""
        with self._on_host():
            for device, value in _pairs(result, host):
                is_taken = device.shape == value.shape and device.dtype == value.dtype
                keep = self.values.keep
                if not (is_taken and keep(device, value, by_rule=by_rule, is_fresh=is_fresh)):
                    self.values.forget(device)

    def _constants(self, reads: Sequence[Tensor]) -> bool:
        contents = (self.values.content(tensor) for tensor in reads)
        return all(content is not None and content.host is None for content in contents)

    def _computed_constant(self, call: _Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on masks of one value each, however large they are."""
        contents = (self.values.content(one) for one in _tensors_in(args))
        values = [torch.tensor(one.constant) for one in contents if one is not None]
        result = call.run(keyset, args, kwargs)
        with self._on_host():
            self.values.keep_constant(result, bool(call.overload(*values)))
        return result

    def _host_result(self, call: _Call, args: Any, kwargs: Any) -> tuple[Any, bool] | None:
        """Return the operator's result on the host's copies and whether a rule had a part in it.

        None when the CPU cannot do it. What it writes to is written on the host.
        """
        by_rule = False

        def hosted(value: Any) -> Any:
            nonlocal by_rule
            if isinstance(value, Tensor) and value.is_cuda:
                content = self.values.content(value)
                if content is None:
                    return torch.empty(value.shape, dtype=value.dtype)
                by_rule = by_rule or content.by_rule
                return self.values.view(value, content)
            if isinstance(value, (list, tuple)):
                return [hosted(one) for one in value]
            return value

        with self._on_host():
            try:
                host = call.overload(
                    *(hosted(one) for one in args), **{k: hosted(v) for k, v in kwargs.items()}
                )
            except (RuntimeError, IndexError, TypeError, ValueError):
                return None
        return host, by_rule

    def _note_unknown(self, call: _Call, result: Any, args: Any, kwargs: Any) -> None:
        """Forget what was written; give masks of unknown values what the rules state."""
        if call.written:
            self._forget(call.writes(args, kwargs))
        if call.written or not isinstance(result, Tensor):
            return
        with self._on_host():
            finite = OF_FINITE.get(call.name, _told_by_finiteness(call.name, args))
            if finite is not None:
                self.values.keep_constant(result, finite)
            elif call.name in ops.COMPARISONS:
                self._note_comparison(call, result, args, kwargs)
            elif call.name in ops.MASK_SUMMARIES and args[0].dtype is torch.bool:
                self._note_summary(call.name, result, args[0])

    def _note_comparison(self, call: _Call, result: Tensor, args: Any, kwargs: Any) -> None:
        try:
            operands = [self._assumed(one) if isinstance(one, Tensor) else one for one in args]
        except _Unknown:
            host = self.rules.mask(result.shape) if result.numel() <= 1 << 22 else None
        else:
            host = call.overload(*operands, **kwargs)
        if host is not None:
            self.values.keep(result, host, by_rule=True)

    def _assumed(self, tensor: Tensor) -> Tensor:
        """Return an operand's values, or those the rules state for a single number or integers."""
        content = self.values.content(tensor) if tensor.is_cuda else None
        if content is not None or not tensor.is_cuda:
            return tensor if content is None else self.values.view(tensor, content)
        if tensor.numel() == 1 or not tensor.dtype.is_floating_point:
            value = self.rules.scalar(tensor.dtype)
            return torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)
        raise _Unknown

    def _note_summary(self, name: str, result: Tensor, mask: Tensor) -> None:
        """Give the summary of an unknown mask, over all of it, its value by rule."""
        if result.numel() != 1 or mask.numel() <= 1:
            return
        count = self.rules.count(mask.numel())
        answers = {"all": 0, "min": 0, "any": 1, "max": 1}
        host = torch.full(result.shape, answers.get(name, count), dtype=result.dtype)
        self.values.keep(result, host, by_rule=True)

    def _forgetting(self, call: _Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator whose writes are not followed."""
        result = call.run(keyset, args, kwargs)
        self._forget(call.writes(args, kwargs))
        return result

    def _forget(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.values.forget(tensor)

    def _data_sized(self, call: _Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that reads the length of its own result."""
        tensor: Tensor = args[0]
        found = None
        if self.values.content(tensor) is not None:
            found = self._host_result(call, args, kwargs)
        length = self._length(call.name, tensor, found)
        with self._answering(length.to_bytes(ops.DATA_SIZED[call.name], "little")):
            if tensor.dtype is torch.bool and call.name == "_unique2" and found is not None:
                # For masks PyTorch counts the true elements instead.
                with self._on_host():
                    true = int(self._assumed(tensor).sum())
                control.clear_reads()
                control.queue_read(true.to_bytes(4, "little"))
            result = call.run(keyset, args, kwargs)
        self._count_read(found is None or found[1], str(length))
        if found is not None:
            self._keep(result, found[0], by_rule=found[1], is_fresh=True)
        return result

    def _length(self, name: str, tensor: Tensor, found: tuple[Any, bool] | None) -> int:
        if found is not None:
            return int(next(_tensors_in(found[0])).shape[0])
        if name == "nonzero":
            return self.rules.count(tensor.numel())
        return min(1, tensor.numel())

    @contextmanager
    def _answering(self, content: bytes) -> Iterator[None]:
        """Deliver bytes to the read that a kernel makes inside."""
        control.queue_read(content)
        self._here.is_answering = True
        try:
            yield
        finally:
            self._here.is_answering = False
            control.clear_reads()

    # -- reads by the host

    def _read_scalar(self, call: _Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return a number that the host asks for."""
        tensor: Tensor = args[0]
        if getattr(self._here, "is_answering", False):
            return call.run(keyset, args, kwargs)
        content = self.values.content(tensor)
        if content is not None:
            with self._on_host():
                value = self.values.view(tensor, content).item()
            self._count_read(content.by_rule, str(value))
            return value
        line = script_line()
        value = self.rules.at_line.get(line, self.rules.scalar(tensor.dtype))
        self._note_by_rule(line, f"{value:g}")
        if tensor.dtype is torch.bool:
            return True if line not in self.rules.at_line else bool(value)
        return value if tensor.dtype.is_floating_point else int(value)

    def _copy(self, call: _Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Copy, and let the values go along."""
        target, source = args[0], args[1]
        if target.is_cuda:
            is_state = getattr(self._here, "is_state", False)
            if is_state or (source.is_cuda and self.values.content(source) is None):
                result = call.run(keyset, args, kwargs)
                self.values.forget(target)
                return result
            return self._computed(call, keyset, args, kwargs)
        result = call.run(keyset, args, kwargs)
        content = self.values.content(source)
        with self._on_host():
            if content is not None:
                target.copy_(self.values.view(source, content))
            elif source.dtype is torch.bool:
                target.copy_(self.rules.mask(source.shape))
            elif source.numel() == 1:
                line = script_line()
                target.fill_(self.rules.at_line.get(line, self.rules.scalar(source.dtype)))
            else:
                target.zero_()
        self._count_read(content is None or content.by_rule, "a tensor")
        return result

    def _count_read(self, by_rule: bool, answer: str) -> None:
        if by_rule:
            self._note_by_rule(script_line(), answer)
        else:
            self.num_from_host += 1

    def _note_by_rule(self, line: str, answer: str) -> None:
        self.by_rule[line, answer] += 1
        self._since_step[line] += 1
        if self._since_step[line] > _MOST_READS_A_STEP:
            raise RuntimeError(
                f"{line} has read a value {_MOST_READS_A_STEP} times without a training step: a "
                "loop waits for what no card computes. Give the line its value with --read "
                f"{line}=VALUE."
            )

    def end_step(self) -> None:
        """Begin to count anew how often each line reads."""
        self._since_step.clear()


def _told_by_finiteness(name: str, args: Sequence[Any]) -> bool | None:
    """Return what a comparison is for every finite number: `x == x`, `x.abs() == inf`.

    So PyTorch composes `isfinite`, `isnan` and `isinf`.
    """
    if name not in {"eq", "ne"} or len(args) < 2:
        return None
    one, other = args[0], args[1]
    is_infinite = isinstance(other, (int, float)) and abs(other) == float("inf")
    if one is other:
        return name == "eq"
    return name == "ne" if is_infinite else None


def _all_overloads() -> Iterator[torch._ops.OpOverload]:
    """Return every overload of PyTorch's own operators that writes, or is listed."""
    listed = ops.FUNCTIONAL | ops.IN_PLACE | ops.FACTORIES
    listed |= {"_local_scalar_dense", "_to_copy"}
    for schema in torch._C._jit_get_all_schemas():
        if not schema.name.startswith("aten::"):
            continue
        name = schema.name.removeprefix("aten::")
        writes = any(one.alias_info is not None and one.alias_info.is_write for one in schema.arguments)
        if name in listed or writes:
            packet = getattr(torch.ops.aten, name, None)
            overload = getattr(packet, schema.overload_name or "default", None)
            if isinstance(overload, torch._ops.OpOverload) and _may_run(overload):
                yield overload


def _may_run(overload: torch._ops.OpOverload) -> bool:
    """Return whether an overload reaches a device kernel of its own name."""
    name = _full_name(overload)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    # TorchScript's own operators are not in the dispatcher.
    is_dispatched = torch._C._dispatch_has_kernel(name)
    return is_dispatched and (has(name, "CUDA") or has(name, "CompositeExplicitAutograd"))


def _full_name(overload: torch._ops.OpOverload) -> str:
    tail = overload._schema.overload_name
    return f"{overload._schema.name}.{tail}" if tail else str(overload._schema.name)
