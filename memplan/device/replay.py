"""A tape replayed on a card: what its allocator would hold, and whether it runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.convolution import ConvolutionProblem
from memplan.device.allocator_replay import StreamResult, replay_stream
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.device.context import outside_allocator
from memplan.device.cublas import release_of, workspaces
from memplan.device.cudnn import WorkspaceOracle
from memplan.tape import Int64, Tape

# More than any card has, so that a replay tells what a life needs instead of where it stops.
UNLIMITED_BYTES = 1 << 50


@dataclass(frozen=True, kw_only=True)
class Life:
    """Which parts of a recorded life are replayed."""

    accumulates: bool = False
    """Whether gradients of several micro-batches are summed before a step."""
    validates: bool = True
    """Whether validation runs between epochs, where it was recorded."""


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The most a life holds on a card, simulated, bytes."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    device_used_peak_bytes: int
    """Reserved plus what the process holds outside the allocator."""
    capacity_bytes: int
    fits: bool
    inactive_split_peak_bytes: int
    """Most that lay free in split blocks, unusable for a larger request."""
    num_alloc_retries: int
    """Times the cache had to be emptied to go on; each costs time."""
    peak_period: str
    peak_phase: str
    peak_module: str
    peak_event: int
    """Index of the replayed event at which allocated memory peaks."""
    out_of_memory: str
    """PyTorch's message where it does not fit, else empty."""


def _schedule(life: Life, *, has_validation: bool) -> list[tuple[str, str, int]]:
    """Return the parts of a life as period, recorded section and copy of the section's blocks."""
    validates = life.validates and has_validation
    parts = [("build", "build", 0)]
    # A step after validation meets a cache that validation has shaped.
    for number in range(3 if validates else 2):
        copy = 2 * number
        if number == 2:
            parts.append(("validation", "validation", 1))
        period = "first_step" if number == 0 else "steady_step"
        parts.append((period, "micro_batch", copy))
        if life.accumulates:
            parts.append(("accumulation_step", "accumulation", copy + 1))
        parts.append((period, "first_update" if number == 0 else "update", copy))
        parts += [(period, "release", copy), (period, "average", copy)]
    return parts


def _lasting_blocks(tape: Tape) -> npt.NDArray[np.bool_]:
    """Return by block whether it stays once allocated.

    That is a block never freed, and one that a section leaves to whichever comes later to free:
    only gradients are meant to pass from one section to another.
    """
    events = tape.events
    born = np.full(len(tape.block_category), -1, dtype=np.int64)
    allocates = events.kind == tapes.ALLOCATE
    born[events.block[allocates]] = events.section[allocates]
    frees = events.kind == tapes.FREE
    freed_blocks, freed_in = events.block[frees], events.section[frees]
    micro_batch, release = (tapes.SECTIONS.index(name) for name in ("micro_batch", "release"))
    as_meant = (born[freed_blocks] == freed_in) | (
        (born[freed_blocks] == micro_batch) & (freed_in == release)
    )
    lasting = np.ones(len(tape.block_category), dtype=bool)
    lasting[freed_blocks[as_meant]] = False
    lasting[events.block[events.kind == tapes.SCRATCH]] = False
    return lasting


class Program:
    """A tape's sections put together to a life, ready to be replayed with any sizes.

    A block that a section allocates and a later one of the same step frees gets an id of its own
    in each step; one that stays to the end (optimizer state, library workspace) is allocated the
    first time only. Accumulating runs the micro-batch with gradients present: each gradient is
    freed at once, having been added to what is there.

    Args:
        tape: gives the structure; its sizes are not used.
        life: which parts to replay.
    """

    def __init__(self, tape: Tape, life: Life) -> None:
        self._tape = tape
        events = tape.events
        self._lasting = _lasting_blocks(tape)
        self._of_build = np.zeros_like(self._lasting)
        self._of_build[events.block[events.section == 0]] = True
        present = set(np.unique(events.section))
        has_validation = tapes.SECTIONS.index("validation") in present
        rows, kinds, blocks, periods = [], [], [], []
        for period, section, copy in _schedule(life, has_validation=has_validation):
            part = self._part(section, copy)
            rows.append(part[0])
            kinds.append(part[1])
            blocks.append(part[2])
            periods.append(np.full(len(part[0]), tapes.PERIODS.index(period)))
        self.rows = np.concatenate(rows)
        """Rows of the tape's events, in the order they are replayed."""
        self.kinds = np.concatenate(kinds)
        self.blocks = np.concatenate(blocks)
        self.periods = np.concatenate(periods)
        self.request = events.request[self.rows]
        self._asks_matrix = self.request == tapes.MATRIX_WORKSPACE
        self._asks_convolution = self.request >= 0

    def _part(self, section: str, copy: int) -> tuple[Int64, Int64, Int64]:
        """Return rows, kinds and block ids of one section as it runs in one step."""
        events = self._tape.events
        accumulates = section == "accumulation"
        recorded = "micro_batch" if accumulates else section
        rows = np.flatnonzero(events.section == tapes.SECTIONS.index(recorded))
        kinds = events.kind[rows].astype(np.int64)
        blocks = events.block[rows].astype(np.int64)
        keeps = np.isin(kinds, (tapes.KEEP_GRADIENT, tapes.KEEP_COPY))
        if accumulates:
            copies = blocks[kinds == tapes.KEEP_COPY]
            kinds[kinds == tapes.KEEP_GRADIENT] = tapes.FREE
            keep = ~(np.isin(blocks, copies) | (kinds == tapes.KEEP_COPY))
        else:
            keep = ~keeps
        lasting = self._lasting[blocks]
        keep &= ~(lasting & (kinds == tapes.FREE))
        if copy:
            keep &= ~lasting & ~self._of_build[blocks]
        rows, kinds, blocks, lasting = rows[keep], kinds[keep], blocks[keep], lasting[keep]
        moved = ~(lasting | self._of_build[blocks])
        return rows, kinds, blocks + moved * copy * len(self._lasting)

    def sizes(self, requested: Int64, convolution_bytes: Int64, matrix_bytes: int) -> Int64:
        """Return each replayed event's bytes, the device's answers filled in.

        Args:
            requested: bytes by row of the tape's events.
            convolution_bytes: workspace by index of the tape's convolutions.
            matrix_bytes: workspace of the matrix library.
        """
        sizes: Int64 = requested[self.rows]
        sizes[self._asks_matrix] = matrix_bytes
        if self._asks_convolution.any():
            sizes[self._asks_convolution] = convolution_bytes[self.request[self._asks_convolution]]
        return sizes

    def place(self, event: int) -> tuple[str, str, str]:
        """Return period, phase and module path of a replayed event."""
        operator = max(int(self._tape.events.operator[self.rows[event]]), 0)
        operators = self._tape.operators
        module = int(operators.module[operator])
        path = self._tape.modules[module].path if module >= 0 else ""
        period = tapes.PERIODS[self.periods[event]]
        return period, tapes.PHASES[operators.phase[operator]], path

    def live_by_category(self, sizes: Int64) -> npt.NDArray[np.int64]:
        """Return bytes held by category after each replayed event, `[categories, events]`.

        Scratch counts while it is held. Bytes are rounded to the allocator's blocks of 512.
        """
        rounded = -(-sizes // 512) * 512
        of_block = np.zeros(int(self.blocks.max(initial=0)) + 1, dtype=np.int64)
        allocates = self.kinds == tapes.ALLOCATE
        of_block[self.blocks[allocates]] = rounded[allocates]
        delta = np.where(
            allocates, rounded, np.where(self.kinds == tapes.FREE, -of_block[self.blocks], 0)
        )
        category = self._tape.block_category[self.blocks % len(self._tape.block_category)]
        live = np.zeros((len(tapes.CATEGORIES), len(sizes)), dtype=np.int64)
        for index in range(len(tapes.CATEGORIES)):
            live[index] = np.cumsum(np.where(category == index, delta, 0))
        scratch = self.kinds == tapes.SCRATCH
        live[tapes.CATEGORY_INDEX["workspace"], scratch] += rounded[scratch]
        return live


class Simulator:
    """A card with its libraries and allocator settings, on which programs are replayed.

    Args:
        card: the device.
        settings: allocator options; None takes PyTorch's defaults.
        torch_version: the release whose allocator and libraries apply, such as `2.11.0`.
        devices: processes training together; above 1 the communicator's buffers come on top.
    """

    def __init__(
        self,
        card: Card,
        settings: AllocatorSettings | None = None,
        *,
        torch_version: str = "2.11.0",
        devices: int = 1,
    ) -> None:
        self.card = card
        self.settings = settings or AllocatorSettings()
        self.oracle = WorkspaceOracle(card)
        self.matrix_bytes = workspaces(card.compute_capability, torch_version).cublas_bytes
        self.outside = outside_allocator(card, devices=devices)
        self.release = release_of(torch_version)

    def convolution_bytes(self, problems: Sequence[ConvolutionProblem]) -> Int64:
        """Return each convolution's workspace on the card, bytes."""
        return np.array(self.oracle.bytes_many(problems), dtype=np.int64)

    def run(
        self, program: Program, sizes: Int64, capacity_bytes: int, *, timeline: bool = False
    ) -> StreamResult:
        """Return the allocator's account of a program with so many bytes to take."""
        return replay_stream(
            program.kinds,
            program.blocks,
            sizes,
            capacity_bytes,
            self.settings,
            torch_version=self.release,
            timeline=timeline,
        )

    def peaks(self, program: Program, sizes: Int64) -> Peaks:
        """Return the peaks of a life, and whether it fits the card.

        Where it does not fit, the peaks are those of a card large enough. Where it fits only
        because the allocator empties its cache in time, they are those on this card.
        """
        outside = self.outside.num_bytes
        available = self.card.capacity_bytes - outside
        needed = self.run(program, sizes, available)
        message = needed.oom_message
        if needed.oom_event >= 0:
            needed = self.run(program, sizes, UNLIMITED_BYTES)
        event = max(needed.allocated_peak_event, 0)
        period, phase, module = program.place(event)
        return Peaks(
            allocated_peak_bytes=needed.allocated_peak_bytes,
            reserved_peak_bytes=needed.reserved_peak_bytes,
            device_used_peak_bytes=needed.reserved_peak_bytes + outside,
            capacity_bytes=self.card.capacity_bytes,
            fits=not message,
            inactive_split_peak_bytes=needed.inactive_split_peak_bytes,
            num_alloc_retries=needed.num_alloc_retries,
            peak_period=period,
            peak_phase=phase,
            peak_module=module,
            peak_event=event,
            out_of_memory=message,
        )


def categories_at(
    program: Program, sizes: Int64, peaks: Peaks, context_bytes: int
) -> dict[str, int]:
    """Return bytes by category at the peak of allocated memory, with `cached` and `context`.

    `cached` is the peak of reserved memory less what is live: blocks the allocator keeps.
    """
    live = program.live_by_category(sizes)[:, peaks.peak_event]
    categories = dict(zip(tapes.CATEGORIES, (int(value) for value in live), strict=True))
    categories["cached"] = max(0, peaks.reserved_peak_bytes - sum(categories.values()))
    categories["context"] = context_bytes
    return categories


def replay(
    tape: Tape,
    card: Card,
    settings: AllocatorSettings | None = None,
    *,
    life: Life | None = None,
) -> Peaks:
    """Return the peaks of a recorded tape on a card.

    Args:
        tape: recorded on any machine.
        card: any card; its own workspaces are asked for.
        settings: allocator options; None takes PyTorch's defaults.
        life: which parts to replay; None replays validation but no accumulation.

    Raises:
        BadInputError: the card cannot run one of the convolutions.
    """
    simulator = Simulator(
        card, settings, torch_version=tape.description.versions.get("torch", "2.11.0")
    )
    program = Program(tape, life or Life())
    sizes = program.sizes(
        tape.events.requested_bytes,
        simulator.convolution_bytes(tape.convolutions),
        simulator.matrix_bytes,
    )
    return simulator.peaks(program, sizes)
