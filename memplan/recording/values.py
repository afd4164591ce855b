"""Values that came from the host survive on a card that computes nothing.

Each operator of `operators_list` is intercepted (`interception`): PyTorch's own kernel runs as ever
and allocates what it allocates; beside it, when all inputs are known, the same operator runs on the
host's copies (`HostValues`), and its results become the content of the device's. Reads by the host
(`.item()`, `.cpu()`, the sizes of `nonzero` and `unique`) then deliver these values, or what
`ValueRules` states.

Limits: operators that write without saying so (the running statistics of batch norm) leave a known
content standing; weights and buffers are taken as unknown for that reason, too.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from memplan.phantom import control
from memplan.recording import operators_list as ops
from memplan.recording.derived_values import DERIVED, MOST_DERIVED, DerivedValues
from memplan.recording.host_reads import HostReads
from memplan.recording.host_values import HostValues
from memplan.recording.interception import (
    Call,
    Kernel,
    Tensor,
    has_device_kernel,
    intercept,
    is_view,
    maps_tensors,
    operator_name,
    overloads,
    pairs,
    tensors_in,
    touches_device,
    written_names,
)
from memplan.recording.ruled_masks import RULED, RuledMasks
from memplan.recording.value_rules import ValueRules

Handler = Callable[[Call, Any, tuple[Any, ...], dict[str, Any]], Any]


class _Here(threading.local):
    """What this thread is doing."""

    is_host = False
    """Whether it works on the host's copies."""
    is_state = False
    """Whether it moves what a module holds."""
    is_answering = False
    """Whether bytes are queued for the read that a kernel makes."""
    is_inside = False
    """Whether it runs an operator whose result is another than what its parts tell."""
    length: int | None = None
    """How long the result of the operator that runs is, where it asks a mask inside."""


class KnownValues:
    """Keeps the values that came from the host, and answers the host's reads.

    Args:
        rules: what is answered where values depend on the network's outputs.
    """

    def __init__(self, rules: ValueRules) -> None:
        self.rules = rules
        self.reads = HostReads(rules)
        self.moving: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while a tensor moves from the host to the device."""
        self._values = HostValues()
        self._masks = RuledMasks(self._values, rules)
        self._derived = DerivedValues(self._values, rules)
        self._state: set[int] = set()
        self._here = _Here()
        self._libraries: list[torch.library.Library] = []
        self._has_others = False

    def install(self) -> None:
        """Intercept the operators in this process, for good."""
        found = ((overload, self._kernel_for(overload)) for overload in overloads())
        self._libraries = [intercept((one, kernel) for one, kernel in found if kernel is not None)]
        if torch.distributed.is_available():
            gathers = (torch.ops.c10d.allgather_, torch.ops.c10d._allgather_base_)
            kernels = (
                (packet.default, self._intercepted(Call(packet.default), self._gathered))
                for packet in gathers
            )
            self._libraries.append(intercept(kernels, "c10d"))
        self.install_others()

    def install_others(self) -> None:
        """Intercept what torchvision adds, once it has been imported."""
        if self._libraries and "torchvision" in sys.modules and not self._has_others:
            self._has_others = True
            names = torch._C._dispatch_get_all_op_names()
            packets = {
                name.split(".")[0].partition("::")[2] for name in names if _is_of_vision(name)
            }
            found = (getattr(torch.ops.torchvision, packet).default for packet in sorted(packets))
            kernels = (
                (one, self._intercepted(Call(one), self._handler_of_vision(one)))
                for one in found
                if has_device_kernel(one)
            )
            self._libraries.append(intercept(kernels, "torchvision"))

    def _handler_of_vision(self, overload: torch._ops.OpOverload) -> Handler:
        is_nms = operator_name(overload) == "torchvision::nms"
        return self._suppressed if is_nms else self._unlisted

    def clear(self) -> None:
        """Forget all contents."""
        self._values.clear()

    def follow_modules(self) -> None:
        """Take what modules hold as unknown when they move: weights decide no size, and change.

        To be called before any module moves; it needs no CUDA.
        """
        move = torch.nn.Module._apply

        def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            outer = self._state
            if not outer:
                self.install_others()
            self._state = {id(one) for one in (*module.parameters(), *module.buffers())} | outer
            try:
                return move(module, *args, **kwargs)  # type: ignore[no-untyped-call]
            finally:
                self._state = outer

        torch.nn.Module._apply = moved  # type: ignore[method-assign,assignment]

    # -- which kernel

    def _kernel_for(self, overload: torch._ops.OpOverload) -> Kernel | None:
        name = operator_name(overload)
        writes = bool(written_names(overload))
        handlers: dict[str, Handler] = {
            "_local_scalar_dense": self._read_number,
            "_to_copy": self._move,
            "copy_": self._copy,
        }
        handler = handlers.get(name)
        if handler is None and name in ops.DATA_SIZED and not writes:
            handler = self._data_sized
        if handler is None and (
            name in ops.FUNCTIONAL or (writes and name in ops.IN_PLACE | ops.FACTORIES)
        ):
            handler = self._computed
        if handler is None and writes and name not in ops.KEEPS_VALUES:
            handler = self._forgetting
        if handler is None and not writes and _hides_parts(overload):
            handler = self._unlisted
        if handler is None:
            return None
        call = Call(overload, overwrites=name in ops.OVERWRITES)
        return self._intercepted(call, handler, is_move=name == "_to_copy")

    def _intercepted(self, call: Call, handler: Handler, *, is_move: bool = False) -> Kernel:
        is_quick = handler in (self._computed, self._forgetting) and call.follows_first
        is_plain = bool(call.written) or call.name in ops.PLAIN
        is_quick = is_quick and is_plain and call.name not in RULED
        is_copy = call.name == "copy_"
        # What follows from the rules, for as few elements as a program decides by.
        derives_below = MOST_DERIVED if call.name in DERIVED else -1
        is_known, here, run = self._values.is_known, self._here, call.run
        # What the host is told, it is told inside of other operators as well.
        tells = handler in (self._data_sized, self._read_number, self._copy)
        # Of a library's report, and of a comparison, operators ask inside whether any is bad.
        tells = tells or call.name in ops.MASK_SUMMARIES

        def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            # Most calls are on what the network computes: nothing to know, nothing to forget.
            first = args[0] if args else None
            if isinstance(first, Tensor) and first.is_cuda:
                if is_quick:
                    if first.numel() > derives_below and not is_known(first):
                        return run(keyset, args, kwargs)
                elif is_move or (is_copy and not (is_known(first) or self._may_tell(args[1]))):
                    return run(keyset, args, kwargs)
            elif not (is_move or touches_device(args, kwargs)):
                return run(keyset, args, kwargs)
            if here.is_host or (here.is_inside and not tells):
                return run(keyset, args, kwargs)
            return handler(call, keyset, args, kwargs)

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

    def _may_tell(self, source: Any) -> bool:
        """Return whether a copy's source has values to give."""
        return not (isinstance(source, Tensor) and source.is_cuda) or self._values.is_known(source)

    # -- what becomes of values

    def _computed(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on the device and, where its inputs are known, on the host's copies."""
        content = self._values.content
        for tensor in call.reads(args, kwargs):
            if content(tensor) is None:
                return self._unknown(call, keyset, args, kwargs)
        result = call.run(keyset, args, kwargs)
        reads = list(call.reads(args, kwargs))
        if reads and call.name in ops.MASK_LOGIC and self._masks.are_constant(reads):
            with self._on_host():
                self._masks.note_constant(call, result, args)
            return result
        found = None
        if all(self._values.has_room(one) for one in tensors_in(result)):
            found = self._host_result(call, args, kwargs)
        if found is not None and found[1] and call.name == "all" and result.numel() == 1:
            # A truth over values that the rules state is true, as one that is asked for is.
            found = torch.ones_like(found[0]), True
        # What the rules state is finite, and so is what follows from it.
        if found is None or (found[1] and not self._are_finite(found[0])):
            self._forget(call.writes(args, kwargs))
        else:
            self._keep(result, found[0], by_rule=found[1], is_fresh=not call.written)
        return result

    def _are_finite(self, host: Any) -> bool:
        with self._on_host():
            floats = (one for one in tensors_in(host) if one.is_floating_point())
            return all(bool(torch.isfinite(one).all()) for one in floats)

    def _unknown(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator some of whose inputs are unknown."""
        if call.written:
            result = call.run(keyset, args, kwargs)
        else:
            result = self._unlisted(call, keyset, args, kwargs)
        if call.name == "bincount":
            self._keep_even_counts(result, args[0].numel())
        if call.name in DERIVED and isinstance(result, Tensor):
            with self._on_host():
                host = self._derived.result(call, result, args, kwargs)
            if host is not None:
                self._keep(result, host, by_rule=True, is_fresh=not call.written)
                return result
        if call.written:
            self._forget(call.writes(args, kwargs))
        elif call.name in RULED and isinstance(result, Tensor):
            with self._on_host():
                self._masks.note(call, result, args, kwargs)
        return result

    def _unlisted(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator of whose result nothing is known, whatever it begins with inside.

        Many make zeros first, which are known, and let a kernel write into them.
        """
        outer, self._here.is_inside = self._here.is_inside, True
        try:
            result = call.run(keyset, args, kwargs)
        finally:
            self._here.is_inside = outer
        if len(self._values):
            self._forget(one for one in tensors_in(result) if one.is_cuda)
        return result

    def _keep_even_counts(self, result: Tensor, total: int) -> None:
        """Take elements that nobody knows as spread evenly, so that their counts have their sum."""
        if result.dtype.is_floating_point or not self._values.has_room(result):
            return
        bins = result.numel()
        with self._on_host():
            host = torch.full((bins,), total // max(1, bins), dtype=result.dtype)
            host[: total % max(1, bins)] += 1
            self._values.keep(result, host, by_rule=True, is_fresh=True)

    def _suppressed(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run a non-maximum suppression: of boxes that are known as the host does, else by rule."""
        boxes = args[0]
        found = None
        if all(self._values.content(one) is not None for one in args[:2]):
            found = self._host_result(call, args, kwargs)
        num_boxes = int(boxes.shape[0])
        self._here.length = self.rules.count(num_boxes) if found is None else len(found[0])
        try:
            result = self._unlisted(call, keyset, args, kwargs)
        finally:
            self._here.length = None
        if found is not None:
            self._keep(result, found[0], by_rule=found[1], is_fresh=True)
        return result

    def _forgetting(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator whose writes are not followed."""
        result = call.run(keyset, args, kwargs)
        self._forget(call.writes(args, kwargs))
        return result

    def _gathered(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Gather from all ranks: the others, which run the same script, send what this one does."""
        result = call.run(keyset, args, kwargs)
        source = next(tensors_in(args[1]))
        content = self._values.content(source)
        for target in tensors_in(args[0]):
            if content is None:
                self._values.forget(target)
                continue
            with self._on_host():
                own = self._values.view(source, content)
                copies = own.reshape(-1).repeat(target.numel() // max(1, own.numel()))
                self._values.keep(target, copies.view(target.shape), by_rule=content.by_rule)
        return result

    def _forget(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._values.forget(tensor)

    def _host_result(self, call: Call, args: Any, kwargs: Any) -> tuple[Any, bool] | None:
        """Return the operator's result on the host's copies and whether a rule had a part in it.

        None when the CPU cannot do it. What it writes to is written on the host.
        """
        by_rule = False

        def hosted(value: Any) -> Any:
            nonlocal by_rule
            if isinstance(value, Tensor) and value.is_cuda:
                content = self._values.content(value)
                if content is None:
                    return torch.empty(value.shape, dtype=value.dtype)
                by_rule = by_rule or content.by_rule
                return self._values.view(value, content)
            if isinstance(value, (list, tuple)):
                return [hosted(one) for one in value]
            return value

        with self._on_host():
            try:
                host = call.overload(
                    *(hosted(one) for one in args), **{k: hosted(v) for k, v in kwargs.items()}
                )
            except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
                return None
        return host, by_rule

    def _keep(self, result: Any, host: Any, *, by_rule: bool, is_fresh: bool) -> None:
        """Take the host's results as the content of the device's, where their shapes agree."""
        keep = self._values.keep
        with self._on_host():
            for device, value in pairs(result, host):
                is_alike = device.shape == value.shape and device.dtype == value.dtype
                if not (is_alike and keep(device, value, by_rule=by_rule, is_fresh=is_fresh)):
                    self._values.forget(device)

    def _data_sized(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that reads the length of its own result."""
        tensor: Tensor = args[0]
        found = None
        if self._values.content(tensor) is not None:
            found = self._host_result(call, args, kwargs)
        length = self._length(call.name, tensor, found)
        num_bytes = ops.DATA_SIZED[call.name]
        if tensor.dtype is torch.bool and call.name == "_unique2":
            # Of a mask PyTorch counts the true elements instead.
            length, num_bytes = self._num_true(tensor), 4
        with self._answering(length.to_bytes(num_bytes, "little")):
            result = call.run(keyset, args, kwargs)
        self.reads.count(str(length), by_rule=found is None or found[1])
        if found is not None:
            self._keep(result, found[0], by_rule=found[1], is_fresh=True)
        return result

    def _length(self, name: str, tensor: Tensor, found: tuple[Any, bool] | None) -> int:
        if self._here.length is not None:
            return self._here.length
        if found is not None:
            return int(next(tensors_in(found[0])).shape[0])
        if name == "nonzero":
            return self.rules.count(tensor.numel())
        # Values that nobody computed are alike.
        return min(1, tensor.numel())

    def _num_true(self, mask: Tensor) -> int:
        content = self._values.content(mask)
        if content is None:
            return self.rules.count(mask.numel())
        with self._on_host():
            return int(self._values.view(mask, content).sum())

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

    # -- moves and reads

    def _read_number(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return a number that the host asks for."""
        tensor: Tensor = args[0]
        if self._here.is_answering:
            return call.run(keyset, args, kwargs)
        content = self._values.content(tensor)
        if content is None:
            return self.reads.number(tensor.dtype)
        with self._on_host():
            value = self._values.view(tensor, content).item()
        if content.by_rule:
            # A loss of zeros that the rules state would end a loop that trains until it is small.
            is_void = tensor.dtype.is_floating_point and not (value and math.isfinite(value))
            return self.reads.number(tensor.dtype, None if is_void else value)
        self.reads.count(str(value), by_rule=False)
        return value

    def _move(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Run a move; the copy inside takes the values along."""
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return call.run(keyset, args, kwargs)
        self._here.is_state = id(args[0]) in self._state
        try:
            with self.moving():
                return call.run(keyset, args, kwargs)
        finally:
            self._here.is_state = False

    def _copy(self, call: Call, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Copy, and let the values go along."""
        target, source = args[0], args[1]
        if target.is_cuda:
            is_unknown = isinstance(source, Tensor) and (
                source.is_cuda and self._values.content(source) is None
            )
            if is_unknown or self._here.is_state:
                return self._forgetting(call, keyset, args, kwargs)
            return self._computed(call, keyset, args, kwargs)
        result = call.run(keyset, args, kwargs)
        self._read_tensor(target, source)
        return result

    def _read_tensor(self, target: Tensor, source: Tensor) -> None:
        """Fill a host tensor that was copied from the device."""
        content = self._values.content(source)
        with self._on_host():
            if content is not None:
                target.copy_(self._values.view(source, content))
            elif source.numel() == 1:
                target.fill_(self.reads.number(source.dtype))
                return
            elif source.dtype is torch.bool:
                target.copy_(self.rules.mask(source.shape))
            else:
                target.zero_()
        self.reads.count("a tensor", by_rule=content is None or content.by_rule)


def _hides_parts(overload: torch._ops.OpOverload) -> bool:
    """Return whether a kernel of its own makes a result that is not its parts'."""
    name = operator_name(overload)
    has_kernel = has_device_kernel(overload) or name.endswith("_backward")
    maps = maps_tensors(overload) and not is_view(overload)
    return has_kernel and maps and name not in ops.COMMON


def _is_of_vision(name: str) -> bool:
    return name.startswith("torchvision::") and "." not in name
