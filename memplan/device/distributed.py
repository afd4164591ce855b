"""What training on several cards adds to one process's life, as events on its tape.

DistributedDataParallel (DDP) keeps flat buckets as large as all gradients beside the gradients,
rebuilds them once in the order in which gradients become ready, and broadcasts through flat
copies. Written onto the tape, these events meet the same replay as all others.

Source: torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp and comm.cpp,
torch/csrc/utils/tensor_flatten.h, torch/nn/modules/_functions.py (SyncBatchNorm); PyTorch 2.11.

How DDP is set up is one object, `DataParallel`: the trainer takes DDP's arguments from it, the
prediction its buckets. `training_policy` is the one of `memplan train`.

Limits: one process a card, and communication hooks that work in place. Temporaries of NCCL's
collectives are freed as PyTorch frees them since it stopped recording streams (2.8), and
SyncBatchNorm's saved image counts, 512 bytes a layer, are left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memplan import tape as tapes
from memplan.device.tape_editor import TapeEditor
from memplan.errors import UsageError
from memplan.tape import Int64, Tape
from memplan.units import MIB

# `kDefaultFirstBucketBytes` in reducer.hpp, `bucket_cap_mb` and `broadcast_bucket_size` in
# distributed.py.
FIRST_BUCKET_BYTES = 1 * MIB
BUCKET_CAP_BYTES = 25 * MIB
BROADCAST_BYTES = 250 * MIB
# broadcast_coalesced keeps that many flat copies in flight.
_MOST_IN_FLIGHT = 2
_NO_LIMIT = 1 << 62
_STEP_SECTIONS = ("micro_batch", "crowded_micro_batch")


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """A parameter or buffer, as far as it decides what DDP allocates."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int

    def is_copied_to_flatten(self, memory_format: str) -> bool:
        """Return whether `contiguous()` copies it before it joins a flat tensor."""
        if memory_format != "channels-last" or len(self.shape) != 4:
            return False
        return self.shape[1] > 1 and self.shape[2] * self.shape[3] > 1


@dataclass(frozen=True, kw_only=True)
class ModelTensors:
    """A model's tensors in the order DDP meets them."""

    parameters: tuple[TensorFacts, ...]
    """Those that need a gradient, as registered."""
    frozen: tuple[TensorFacts, ...]
    """Parameters that need none."""
    buffers: tuple[TensorFacts, ...]

    @classmethod
    def of(cls, model: Any) -> ModelTensors:
        """Return the facts of a `torch.nn.Module` on any device."""

        def facts(tensor: Any) -> TensorFacts:
            return TensorFacts(
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype),
                num_bytes=tensor.numel() * tensor.element_size(),
            )

        parameters = list(model.parameters())
        return cls(
            parameters=tuple(facts(one) for one in parameters if one.requires_grad),
            frozen=tuple(facts(one) for one in parameters if not one.requires_grad),
            buffers=tuple(facts(one) for one in model.buffers()),
        )


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """How DDP is set up; the defaults are PyTorch's."""

    devices: int
    """Processes, one a card, >= 2."""
    gradient_as_bucket_view: bool = False
    """Whether gradients are views of the buckets instead of having memory of their own."""
    find_unused_parameters: bool = False
    """Whether DDP looks for parameters without gradients; the first buckets then stay."""
    static_graph: bool = False
    """Whether the graph is stated to be the same in every step."""
    broadcast_buffers: bool = True
    """Whether buffers are broadcast from rank 0 at each forward."""
    init_sync: bool = True
    """Whether DDP's construction compares shapes and broadcasts rank 0's model in flat copies."""
    sync_batch_norm: bool = False
    """Whether batch norm is `SyncBatchNorm`."""
    bucket_cap_bytes: int | None = None
    """What closes a bucket, a multiple of a MiB; None is PyTorch's 25 MiB, and 1 MiB the first."""
    settles_buckets: bool = False
    """Whether the buckets are made anew by passes before training, as `memplan train` does, and not
    in the second step; gradients then stay in them between steps."""

    def __post_init__(self) -> None:
        """Check the number of devices.

        Raises:
            UsageError: there are fewer than two.
        """
        if self.devices < 2:
            raise UsageError(f"--devices {self.devices} needs no DDP. Give 2 or more.")

    @property
    def bucket_limits(self) -> list[int]:
        """Bytes that close the first bucket, and the others."""
        if self.bucket_cap_bytes is None:
            return [FIRST_BUCKET_BYTES, BUCKET_CAP_BYTES]
        return [self.bucket_cap_bytes]

    @property
    def rebuilds(self) -> bool:
        """Whether DDP makes its buckets anew once it knows the order of gradients."""
        return self.static_graph or not self.find_unused_parameters

    def arguments(self) -> dict[str, Any]:
        """Return what DistributedDataParallel's constructor is given."""
        cap = self.bucket_cap_bytes
        return {
            "bucket_cap_mb": None if cap is None else cap // MIB,
            "gradient_as_bucket_view": self.gradient_as_bucket_view,
            "find_unused_parameters": self.find_unused_parameters,
            "static_graph": self.static_graph,
            "broadcast_buffers": self.broadcast_buffers,
            "init_sync": self.init_sync,
        }


def training_policy(devices: int, *, sync_batch_norm: bool = False) -> DataParallel:
    """Return how `memplan train` sets DDP up.

    Gradients live in the buckets alone. Rank 0's model was sent before, tensor by tensor. Buffers
    are not broadcast: training reads no batch-norm statistics, and rank 0's are the ones that are
    saved either way.
    """
    return DataParallel(
        devices=devices,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        init_sync=False,
        sync_batch_norm=sync_batch_norm,
        settles_buckets=True,
    )


def assign_buckets(
    sizes: Sequence[int], kinds: Sequence[Hashable], limits: Sequence[int], *, in_order: bool
) -> list[list[int]]:
    """Return buckets of tensor indices as DDP assigns them.

    A bucket is closed when it reaches its limit, so the tensor that fills it may exceed it. Each
    kind (dtype and device) goes through the limits on its own; the last one holds for the rest.

    Args:
        sizes: bytes of each tensor.
        kinds: what may not share a bucket.
        limits: bytes, >= 1 of them.
        in_order: False sorts buckets by their first tensor, as is done when the tensors are in the
            order of registration; True keeps them as they were closed.

    Source: `compute_bucket_assignment_by_size` in reducer.cpp.
    """
    closed: list[list[int]] = []
    filling: dict[Hashable, list[int]] = {}
    rank: dict[Hashable, int] = {}
    held: dict[Hashable, int] = {}
    for index, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        filling.setdefault(kind, []).append(index)
        held[kind] = held.get(kind, 0) + size
        if held[kind] >= limits[min(rank.get(kind, 0), len(limits) - 1)]:
            closed.append(filling.pop(kind))
            held[kind] = 0
            rank[kind] = rank.get(kind, 0) + 1
    closed += filling.values()
    return closed if in_order else sorted(closed, key=min)


def first_buckets(tensors: ModelTensors, settings: DataParallel) -> list[int]:
    """Return the bytes of the buckets DDP is built with, in the order they are allocated.

    One bucket a dtype, unless unused parameters are looked for: the order of registration says
    little about the order of gradients, so PyTorch reduces once at the end of the first step.
    """
    limits = [_NO_LIMIT] if settings.rebuilds else settings.bucket_limits
    sizes = [one.num_bytes for one in tensors.parameters]
    kinds = [one.dtype for one in tensors.parameters]
    buckets = assign_buckets(sizes, kinds, limits, in_order=False)
    return [sum(sizes[index] for index in bucket) for bucket in reversed(buckets)]


def rebuilt_buckets(
    ready: Sequence[int],
    kinds: Sequence[Hashable] = (),
    limits: Sequence[int] = (FIRST_BUCKET_BYTES, BUCKET_CAP_BYTES),
) -> list[int]:
    """Return the bytes of the buckets after the first step.

    Args:
        ready: bytes of the gradients in the order they became ready.
        kinds: their dtypes; empty takes them to be one.
        limits: as `DataParallel.bucket_limits`.
    """
    buckets = assign_buckets(ready, kinds or [""] * len(ready), limits, in_order=True)
    return [sum(ready[index] for index in bucket) for bucket in buckets]


def settled_buckets(tensors: ModelTensors, settings: DataParallel) -> list[int]:
    """Return the bytes of the buckets after the passes that settle them, in order.

    Those passes meet the parameters from the last registered to the first.
    """
    if not settings.rebuilds:
        return first_buckets(tensors, settings)
    last_first = tensors.parameters[::-1]
    return rebuilt_buckets(
        [one.num_bytes for one in last_first],
        [one.dtype for one in last_first],
        settings.bucket_limits,
    )


def gradients_in_order(tape: Tape) -> tuple[list[int], list[int]]:
    """Return rows of the events that keep a gradient, and the gradients' bytes, in order."""
    events = tape.events
    in_step = events.section == tapes.SECTIONS.index("micro_batch")
    rows = np.flatnonzero(in_step & np.isin(events.kind, (tapes.KEEP_GRADIENT, tapes.KEEP_COPY)))
    born = events.kind == tapes.ALLOCATE
    of_block = np.zeros(len(tape.block_category), dtype=np.int64)
    of_block[events.block[born]] = events.requested_bytes[born]
    return rows.tolist(), of_block[events.block[rows]].tolist()


def with_data_parallel(tape: Tape, tensors: ModelTensors, settings: DataParallel) -> Tape:
    """Return the tape of rank 0 of several processes that train together.

    Args:
        tape: of one process alone, as recorded.
        tensors: of the model that was recorded.
        settings: how DDP is set up.
    """
    editor = TapeEditor(tape)
    _build(editor, tape, tensors, settings)
    if settings.sync_batch_norm:
        _synchronize_batch_norms(editor, tape, settings.devices)
    if settings.broadcast_buffers and tensors.buffers:
        _broadcast_buffers(editor, tape, tensors)
    _copy_gradients(editor, tape)
    if settings.settles_buckets:
        _settle(editor, tape, tensors, settings)
    elif settings.rebuilds:
        _rebuild(editor, tape, tensors, settings)
    if settings.gradient_as_bucket_view:
        _view_gradients(editor, tape)
    return editor.finish()


def of_other_rank(tape: Tape) -> Tape:
    """Return the tape of a rank other than 0: no moving average, validation or checkpoint.

    Source: the official YOLOv9 recipe, whose rank 0 alone keeps the average and validates.
    """
    events, operators = tape.events, tape.operators
    left_out = [tapes.SECTIONS.index(name) for name in ("average", "validation", "checkpoint")]
    gone = np.isin(events.section, left_out)
    averages = operators.phase == tapes.PHASES.index("average")
    gone |= (events.section == 0) & (events.operator >= 0) & averages[events.operator]
    born = np.unique(events.block[gone & (events.kind == tapes.ALLOCATE)])
    return TapeEditor(tape).finish(keep=~(gone | np.isin(events.block, born)))


def _build(editor: TapeEditor, tape: Tape, tensors: ModelTensors, settings: DataParallel) -> None:
    """Write what DDP's construction allocates at the end of the build."""
    end = int(np.count_nonzero(tape.events.section == 0))
    at = editor.at(end, "build", "transfer")
    if settings.init_sync:
        # _verify_param_shape_across_processes: sizes and strides of every parameter as int64.
        at.temporary("ddp.verify", 8 * 2 * sum(len(one.shape) for one in tensors.parameters))
        states = [*tensors.parameters, *tensors.frozen]
        states += tensors.buffers if settings.broadcast_buffers else ()
        _broadcast(editor, end, "build", "transfer", states, tape.description.spec.memory_format)
    for num_bytes in first_buckets(tensors, settings):
        editor.first_buckets.append(at.allocate("ddp.bucket", num_bytes, "gradient"))
    if settings.find_unused_parameters or settings.static_graph:
        at.allocate("ddp.used_map", 4 * len(tensors.parameters), "temporary")


def _broadcast(
    editor: TapeEditor,
    position: int,
    section: str,
    phase: str,
    tensors: Sequence[TensorFacts],
    memory_format: str,
) -> None:
    """Write the flat copies through which tensors are broadcast, two of them alive at once."""
    sizes = [one.num_bytes for one in tensors]
    kinds = [one.dtype for one in tensors]
    at = editor.at(position, section, phase)
    in_flight: list[int] = []
    for bucket in assign_buckets(sizes, kinds, [BROADCAST_BYTES], in_order=False):
        if len(in_flight) == _MOST_IN_FLIGHT:
            at.free("ddp.broadcast", in_flight.pop(0))
        moved = 4 * sum(sizes[index] for index in bucket)
        copied = [tensors[i] for i in bucket if tensors[i].is_copied_to_flatten(memory_format)]
        copies = [at.allocate("ddp.flatten", one.num_bytes, "temporary") for one in copied]
        if len(bucket) == 1:  # one tensor alone is sent as it is, or as its copy
            in_flight += copies
            continue
        flat = at.allocate("ddp.broadcast", moved // 4, "temporary", moved_bytes=moved)
        in_flight.append(flat)
        for copy in copies:
            at.free("ddp.flatten", copy)
    for flat in in_flight:
        at.free("ddp.broadcast", flat)


def _rows_of(tape: Tape, section: str, phase: str) -> Int64:
    """Return the rows of a section's events in one phase."""
    events = tape.events
    here = events.section == tapes.SECTIONS.index(section)
    its_phase = tape.operators.phase[np.maximum(events.operator, 0)]
    return np.flatnonzero(here & (its_phase == tapes.PHASES.index(phase)))


def _broadcast_buffers(editor: TapeEditor, tape: Tape, tensors: ModelTensors) -> None:
    """Write the broadcast of buffers before each forward."""
    for section in _STEP_SECTIONS:
        rows = _rows_of(tape, section, "forward")
        if len(rows):
            _broadcast(editor, int(rows[0]), section, "forward", tensors.buffers, "contiguous")


def _copy_gradients(editor: TapeEditor, tape: Tape) -> None:
    """Write the copies into the buckets and back as operators; they allocate nothing."""
    _, sizes = gradients_in_order(tape)
    for name in ("ddp.to_bucket", "ddp.from_bucket"):
        for num_bytes in sizes:
            editor.operator(name, "micro_batch", "backward", 2 * num_bytes)


def _rebuild(editor: TapeEditor, tape: Tape, tensors: ModelTensors, settings: DataParallel) -> None:
    """Write the section in which buckets are made anew, run before the second forward."""
    _, ready = gradients_in_order(tape)
    buckets = rebuilt_buckets(ready, limits=settings.bucket_limits)
    dtypes = {one.dtype for one in tensors.parameters}
    # Of several dtypes the tape does not say which gradient has which; together they are as large.
    buckets = buckets if len(dtypes) == 1 else [sum(ready)]
    _make_anew(editor, editor.at(len(tape), "bucket_rebuild", "forward"), len(ready), buckets)


def _settle(editor: TapeEditor, tape: Tape, tensors: ModelTensors, settings: DataParallel) -> None:
    """Write the passes over all parameters that end the build, and the buckets made anew."""
    end = int(np.count_nonzero(tape.events.section == 0))
    at = editor.at(end, "build", "transfer")
    # A gradient at a time, until it is in its bucket.
    for one in tensors.parameters[::-1]:
        at.temporary("ddp.zero_gradient", one.num_bytes)
    if settings.rebuilds:
        _make_anew(editor, at, len(tensors.parameters), settled_buckets(tensors, settings))


def _make_anew(editor: TapeEditor, at: Any, num_gradients: int, buckets: Sequence[int]) -> None:
    # sync_bucket_indices: the new order goes round as int32 before the old buckets are dropped.
    indices = at.allocate("ddp.indices", 4 * (num_gradients + 1), "temporary")
    counts = at.allocate("ddp.indices", 4 * len(buckets), "temporary")
    at.free("ddp.indices", counts)
    at.free("ddp.indices", indices)
    for old in editor.first_buckets:
        at.free("ddp.bucket", old)
    for num_bytes in buckets:
        at.allocate("ddp.bucket", num_bytes, "gradient")


def _view_gradients(editor: TapeEditor, tape: Tape) -> None:
    """Free each gradient once it is in its bucket, as it becomes a view of that."""
    rows, _ = gradients_in_order(tape)
    blocks = tape.events.block[rows]
    for row, block in zip(rows, blocks, strict=True):
        at = editor.at(row + 1, "micro_batch", "backward")
        at.free("ddp.to_bucket", int(block))
        if tape.events.kind[row] == tapes.KEEP_GRADIENT:
            editor.drop(row)
    release = tape.events.section == tapes.SECTIONS.index("release")
    for shared in np.flatnonzero(release & np.isin(tape.events.block, blocks)):
        editor.drop(int(shared))


def _synchronize_batch_norms(editor: TapeEditor, tape: Tape, devices: int) -> None:
    """Write the temporaries of `SyncBatchNorm` around each batch norm of the step."""
    events = tape.events
    sections = [tapes.SECTIONS.index(name) for name in _STEP_SECTIONS]
    allocates = np.flatnonzero((events.kind == tapes.ALLOCATE) & np.isin(events.section, sections))
    for operator in np.unique(events.operator[allocates]):
        name = tape.operator_names[tape.operators.name[operator]]
        rows = allocates[events.operator[allocates] == operator]
        if "batch_norm" not in name or len(rows) < 3:
            continue
        # Output, mean and deviation; or the gradients of input, weight and bias.
        per_channel = int(events.requested_bytes[rows[1]])
        gathered = devices * (2 * per_channel + 4)
        first = [per_channel, per_channel, 2 * per_channel]
        if "backward" not in name:
            first = [per_channel, per_channel, 4, 2 * per_channel + 4, gathered]
            first += [devices, devices * per_channel, devices * per_channel, 4 * devices]
        section = tapes.SECTIONS[events.section[rows[0]]]
        phase = tapes.PHASES[tape.operators.phase[operator]]
        before = editor.at(int(rows[0]), section, phase)
        blocks = [before.allocate("ddp.sync_batch_norm", size, "temporary") for size in first]
        after = editor.at(int(rows[-1]) + 1, section, phase)
        for block in blocks:
            after.free("ddp.sync_batch_norm", block)
