"""Watches every operator of a step and writes down what it does to device memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from memplan import tape
from memplan.convolution import ConvolutionProblem
from memplan.errors import BadInputError
from memplan.launches import AnyLaunch
from memplan.trace import operators
from memplan.trace.alike import AlikeResults
from memplan.trace.memo import Cost, FakeTensors, Known, call_key, remember
from memplan.trace.module_tracker import ModuleTracker
from memplan.trace.operators_attention import recorded_for
from memplan.trace.source_lines import SourceLines


class _Columns:
    """The rows of a growing table, turned into arrays at the end."""

    def __init__(self, **dtypes: Any) -> None:
        self._dtypes = dtypes
        self.rows: list[tuple[int, ...]] = []

    def arrays(self) -> dict[str, Any]:
        numbers = itertools.chain.from_iterable(self.rows)
        table = np.fromiter(numbers, np.int64, len(self.rows) * len(self._dtypes))
        columns = table.reshape(-1, len(self._dtypes)).T
        return {
            name: column.astype(dtype)
            for (name, dtype), column in zip(self._dtypes.items(), columns, strict=True)
        }


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the events and operators of whatever runs inside it.

    Args:
        device: whose memory is recorded.
        fake_mode: the mode in which tensors are fake; None where they are real.
    """

    def __init__(self, device: torch.device, fake_mode: FakeTensorMode | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self._fake_mode = fake_mode
        self._make_fake = FakeTensors(fake_mode) if fake_mode is not None else None
        self._known: dict[Any, Known] = {}
        self._alike = AlikeResults()
        self._section = 0
        self._phase = 0
        self.modules: ModuleTracker | None = None
        self.unknown: Counter[str] = Counter()
        self._events = _Columns(
            kind=np.int8,
            block=np.int32,
            requested_bytes=np.int64,
            asks=np.int8,
            about=np.int32,
            operator=np.int32,
            section=np.int8,
        )
        self._operators = _Columns(
            name=np.int32,
            module=np.int32,
            section=np.int8,
            phase=np.int8,
            flops=np.int64,
            moved_bytes=np.int64,
            line=np.int32,
        )
        self._lines = SourceLines()
        self._tensors: dict[tape.TensorKind, int] = {}
        self._block_tensors: list[int] = []
        self._names: dict[Any, int] = {}
        self._labels: list[str] = []
        self._convolutions: dict[ConvolutionProblem, int] = {}
        self._launches: list[AnyLaunch] = []
        self._categories: list[int] = []
        self._live: dict[int, tuple[int, Any]] = {}
        self._has_matrix_workspace: set[tuple[bool, int]] = set()
        self._node = ""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute everything inside to the named phase."""
        outer, self._phase = self._phase, tape.PHASES.index(name)
        first_block = len(self._categories)
        try:
            yield
        finally:
            self._phase = outer
            self._node = ""
        if name == "forward":
            self._keep_for_backward(first_block)

    def _keep_for_backward(self, first_block: int) -> None:
        """Call what forward leaves alive an activation: only backward can want it.

        Checkpointing keeps the inputs of its regions without the graph's saving them.
        """
        temporary = tape.CATEGORY_INDEX["temporary"]
        for block, _ in self._live.values():
            if block >= first_block and self._categories[block] == temporary:
                self._categories[block] = tape.CATEGORY_INDEX["activation"]

    def begin(self, section: str) -> None:
        """Attribute everything from now on to the named section of the tape."""
        self._section = tape.SECTIONS.index(section)

    def keep_gradient(self, leaf: torch.Tensor, copied: bool) -> None:
        """Note that a leaf has its gradient now."""
        assert leaf.grad is not None
        self.categorize(leaf.grad, "gradient")
        block, _ = self._live[leaf.grad.untyped_storage()._cdata]
        self._event(tape.KEEP_COPY if copied else tape.KEEP_GRADIENT, block, 0)

    def watch(self, model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return the context in which operators are attributed to the model's modules."""
        self.modules = ModuleTracker(model)
        return self.modules.hooks()

    def enter_node(self, sequence_number: int, name: str) -> None:
        """Attribute what follows to the module that made this autograd node, and know its name."""
        self._node = name
        if self.modules is not None:
            self.modules.of_backward = self.modules.owner(sequence_number)

    def categorize(self, tensor: torch.Tensor | None, category: str) -> None:
        """State what the tensor's memory is for; the last statement counts.

        Parameters and optimizer state stay what they are when they are also saved for backward.
        """
        if tensor is None:
            return
        entry = self._live.get(tensor.untyped_storage()._cdata)
        lasting = [tape.CATEGORY_INDEX[n] for n in ("parameter", "input", "optimizer_state")]
        if entry is not None and (
            category != "activation" or self._categories[entry[0]] not in lasting
        ):
            self._categories[entry[0]] = tape.CATEGORY_INDEX[category]

    def _is_here(self, tensor: torch.Tensor) -> bool:
        place = getattr(tensor, "fake_device", None) or tensor.device
        return bool(place.type == self.device.type)

    def _default_category(self) -> str:
        phase = tape.PHASES[self._phase]
        if self.section == "build":
            return "parameter"
        if phase == "backward" and torch.is_grad_enabled():
            return "activation"  # forward runs again inside backward: recomputation
        return "input" if phase == "transfer" else "temporary"

    def _new_block(self, category: str, tensor: torch.Tensor | None = None) -> int:
        self._categories.append(tape.CATEGORY_INDEX[category])
        number = -1
        if tensor is not None:
            kind = tape.TensorKind(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            number = self._tensors.setdefault(kind, len(self._tensors))
        self._block_tensors.append(number)
        return len(self._categories) - 1

    @property
    def num_events(self) -> int:
        """How many events there are so far."""
        return len(self._events.rows)

    @property
    def section(self) -> str:
        """Section of the life that runs, one of `tape.SECTIONS`."""
        return tape.SECTIONS[self._section]

    def _event(
        self, kind: int, block: int, num_bytes: int, asks: int = tape.KNOWN, about: int = 0
    ) -> None:
        row = len(self._operators.rows) - 1
        self._events.rows.append((kind, block, num_bytes, asks, about, row, self._section))

    def _allocate_output(self, tensor: Any, num_bytes: int | None = None) -> bool:
        """Record the tensor's memory if it is new on the device, with more bytes than it needs."""
        if not isinstance(tensor, torch.Tensor) or not self._is_here(tensor):
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return False
        block = self._new_block(self._default_category(), tensor)
        self._event(tape.ALLOCATE, block, storage.nbytes() if num_bytes is None else num_bytes)

        def freed(_: Any) -> None:
            del self._live[key]
            self._event(tape.FREE, block, 0)

        self._live[key] = (block, weakref.ref(storage, freed))
        return True

    def _scratch(self, convolution: ConvolutionProblem) -> None:
        about = self._convolutions.setdefault(convolution, len(self._convolutions))
        self._event(tape.SCRATCH, self._new_block("workspace"), 0, tape.CONVOLUTION, about)

    def _launch_buffer(self, launch: AnyLaunch, buffer: str, block: int) -> None:
        """Record a buffer of a launch; the first of its buffers is a new launch."""
        if buffer == launch.BUFFERS[0]:
            self._launches.append(launch)
        asks = tape.QUESTIONS.index(buffer)
        self._event(tape.ALLOCATE, block, 0, asks, len(self._launches) - 1)

    def _matrix_workspace(self, asks: int) -> None:
        """Record a workspace that a thread's handle keeps from its first product on."""
        key = (tape.PHASES[self._phase] == "backward", asks)
        if key not in self._has_matrix_workspace:
            self._has_matrix_workspace.add(key)
            self._event(tape.ALLOCATE, self._new_block("workspace"), 0, asks)

    def _cost(
        self,
        overload: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        outputs: list[Any],
    ) -> Cost:
        """Return what a call does."""
        name = self._names.setdefault(overload, len(self._names))
        if name == len(self._labels):
            self._labels.append(str(overload))
        packet = overload.overloadpacket
        flops = 0
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
        tensors = {id(t): t.nbytes for t in _tensors((args, kwargs, result)) if self._is_here(t)}
        return Cost(
            name=name,
            flops=flops,
            moved_bytes=sum(tensors.values()),
            requests=tuple(operators.requests(overload, args, outputs, kwargs)),
            is_understood=operators.is_understood(overload),
        )

    def _answer(self, request: operators.Request, outputs: Sequence[Any], held: list[int]) -> None:
        """Write down one request of an operator; `held` are the temporaries it has."""
        match request:
            case operators.Output(index, num_bytes):
                self._allocate_output(outputs[index], num_bytes)
            case operators.Temporary(num_bytes):
                held.append(self._new_block("temporary"))
                self._event(tape.ALLOCATE, held[-1], num_bytes)
            case operators.Scratch(launch, buffer):
                held.append(self._new_block("temporary"))
                self._launch_buffer(launch, buffer, held[-1])
            case operators.Workspace(convolution):
                self._scratch(convolution)
            case operators.MatrixWorkspace():
                self._matrix_workspace(tape.MATRIX_WORKSPACE)
            case operators.LightMatrixWorkspace():
                self._matrix_workspace(tape.LIGHT_MATRIX_WORKSPACE)
            case operators.Release(count, keep):
                end = len(held) - keep
                for block in held[end - count : end]:
                    self._event(tape.FREE, block, 0)
                del held[end - count : end]

    def _play(self, cost: Cost, outputs: Sequence[Any]) -> None:
        """Write down an operator and what it asks of the allocator."""
        module = self.modules.current if self.modules is not None else -1
        line = self._lines.current()
        self._operators.rows.append(
            (cost.name, module, self._section, self._phase, cost.flops, cost.moved_bytes, line)
        )
        held: list[int] = []
        for request in cost.requests:
            self._answer(request, outputs, held)
        for block in held:
            self._event(tape.FREE, block, 0)
        if not cost.is_understood:
            self.unknown[self._labels[cost.name]] += 1

    def stand_in(self, tensor: torch.Tensor) -> float:
        """Return a number for a value that the host asks of a tensor.

        The gradient scaler asks whether a gradient overflowed (a device tensor: it did not);
        optimizers ask for their step count (a host tensor: it is the first).
        """
        place = getattr(tensor, "fake_device", None) or tensor.device
        value = 0 if place.type == "cuda" else 1
        if tensor.dtype is torch.bool:
            return bool(value)
        return float(value) if tensor.dtype.is_floating_point else value

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Decline the wrapper that would import PyTorch's compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in _BOOKKEEPING:
            return _bookkept(func, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.stand_in(args[0])
        if operators.adds_bias_in_place(func) and self._is_here(args[0]):
            self._play(self._cost(func, args, kwargs, args[0], []), [])
            return torch.ops.aten.alias.default(args[0])
        if _returns_its_input(func) or self._writes_in_place(func, args):
            # Nothing is allocated and no shape changes, so the fake kernel would tell nothing.
            returned = args[0] if func._schema.returns else None
            if any(self._is_here(tensor) for tensor in _tensors(args[:1])):
                self._play(self._cost(func, args, kwargs, returned, []), [])
            return returned
        key = call_key(func, args, kwargs) if self._fake_mode is not None else None
        known = self._known.get(key) if key is not None else None
        if known is None and key is not None:
            known = self._known_by_others(func, args, kwargs, key)
        if known is None:
            return self._first_call(func, args, kwargs, key)
        assert self._make_fake is not None
        outputs = known.make_outputs(self._make_fake, args)
        if known.cost is not None:
            self._play(known.cost, outputs)
        return known.packed(outputs)

    def _writes_in_place(self, func: Any, args: Any) -> bool:
        """Return whether a backward formula would write into the first argument on a device."""
        if not self._node or not operators.in_place_on_device(self._node, func):
            return False
        written = args[0]
        others = _tensors(args[1:])
        if torch.Tag.pointwise in func.tags and any(t.numel() > written.numel() for t in others):
            return False  # the result is larger than what it would be written into
        return all(
            tensor.dtype == written.dtype or not tensor.dtype.is_floating_point
            for tensor in others
            if tensor.numel() >= written.numel()
        )

    def _known_by_others(self, func: Any, args: Any, kwargs: Any, key: Any) -> Known | None:
        """Return what a call gives that was met on other shapes only; None where shapes decide."""
        known = self._alike.results(func, args, kwargs)
        if known is None:
            return None
        assert self._make_fake is not None
        outputs = known.make_outputs(self._make_fake, args)
        if any(self._is_here(tensor) for tensor in _tensors(outputs)):
            cost = self._cost(func, args, kwargs, known.packed(outputs), outputs)
            known = replace(known, cost=cost)
        self._known[key] = known
        return known

    def _first_call(self, func: Any, args: Any, kwargs: Any, key: Any) -> Any:
        try:
            result = func(*args, **kwargs)
        except DynamicOutputShapeException:
            raise BadInputError(
                f"The step calls {func}, whose output size depends on data, so it cannot be "
                "recorded without a GPU. Use an operator with a fixed output shape, or state the "
                "size (states_sizes and num_chosen of memplan.workload.Workload)."
            ) from None
        result = operators.laid_out_on_device(func, args, result)
        outputs = list(result) if isinstance(result, tuple | list) else [result]
        cost = None
        if not func.is_view and any(self._is_here(tensor) for tensor in _tensors(outputs)):
            cost = self._cost(func, args, kwargs, result, outputs)
            self._play(cost, outputs)
        if key is not None:
            known = remember(func, result, outputs, args, cost)
            if known is not None:
                self._known[key] = known
                self._alike.learn(func, args, kwargs, known)
        return result

    def events(self) -> tape.Events:
        """Return all events so far."""
        self._events.rows = _settled(self._events.rows)
        return tape.Events(**self._events.arrays())

    def finish(self, description: tape.Description) -> tape.Tape:
        """Return the tape of everything recorded."""
        return tape.Tape(
            description=replace(description, compute_capability=recorded_for()),
            events=self.events(),
            operators=tape.Operators(**self._operators.arrays()),
            block_category=np.array(self._categories, dtype=np.int8),
            operator_names=tuple(self._labels),
            modules=tuple(self.modules.records) if self.modules is not None else (),
            convolutions=tuple(self._convolutions),
            launches=tuple(self._launches),
            lines=self._lines.texts,
            tensors=tuple(self._tensors),
            block_tensor=np.array(self._block_tensors, dtype=np.int32),
        )


def _settled(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the events with frees that follow each other in the order of their blocks.

    Autocast drops its cached casts in the order of their addresses, which is chance. No allocation
    falls between such frees, so on a device their order changes nothing.
    """
    settled: list[tuple[int, ...]] = []
    for is_free, group in itertools.groupby(rows, key=lambda row: row[0] == tape.FREE):
        run = list(group)
        # Kind, block, bytes, asks, about, operator, section: the operator keeps its place.
        settled += sorted(run, key=lambda row: (row[5], row[1])) if is_free else run
    return settled


@functools.cache
def _returns_its_input(overload: Any) -> bool:
    """Return whether an operator writes into its first argument and changes nothing else of it."""
    schema = overload._schema
    if not schema.name.endswith("_") or torch.Tag.inplace_view in overload.tags:
        return False
    first = schema.arguments[0]
    writes = first.alias_info is not None and first.alias_info.is_write
    others = [a for a in schema.arguments[1:] if a.alias_info is not None and a.alias_info.is_write]
    own = not schema.returns or (len(schema.returns) == 1 and not others)
    return writes and own and "resize" not in schema.name and "set_" not in schema.name


_DEVICE_OF = torch.ops.prim.device.default
_META = torch.device("meta")
# Namespaces of operators that touch no tensor's memory.
_BOOKKEEPING = {"prim", "profiler"}


def _bookkept(func: Any, args: Any, kwargs: Any) -> Any:
    if func is _DEVICE_OF and isinstance(args[0], FakeTensor):
        # Asked for every operator: PyTorch's own answer, without its way through the modes.
        return _META if args[0].fake_mode.in_kernel_invocation else args[0].fake_device
    return func(*args, **kwargs)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]
