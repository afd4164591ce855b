"""A tape replayed on a card: what its allocator would hold, and whether it runs out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memplan import tape as tapes
from memplan.convolution import ConvolutionProblem
from memplan.device.allocator_replay import StreamResult, replay_stream
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.device.context import outside_allocator
from memplan.device.cublas import ENVIRONMENT_VARIABLE, release_of, workspaces
from memplan.device.cudnn import WorkspaceOracle
from memplan.device.cudnn_beside import CudnnBeside
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.plan_fallback import PlanFallback
from memplan.launches.launch import Launch, Processors
from memplan.tape import QUESTIONS, Int64, Tape

# More than any card has, so that a replay tells what a life needs instead of where it stops.
UNLIMITED_BYTES = 1 << 50


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
    num_slower_plans: int = 0
    """Convolutions that run another plan than the best, whose workspace finds no memory."""
    num_ooms: int = 0
    """Requests that found no memory, those included after which a convolution took another plan."""

    @property
    def note(self) -> str:
        """What a reader must know of how it fits, a sentence; empty where there is nothing."""
        count = self.num_slower_plans
        if not count:
            return ""
        who = "convolution takes" if count == 1 else "convolutions take"
        return f"{count} {who} a slower plan at this capacity: the best finds no workspace."


class Simulator:
    """A card with its libraries and allocator settings, on which programs are replayed.

    Args:
        card: the device.
        settings: allocator options; None takes PyTorch's defaults.
        torch_version: the release whose allocator and libraries apply, such as `2.11.0`.
        devices: processes training together; above 1 the communicator's buffers come on top.
        cudnn_benchmark: whether convolutions take the plan that proves fastest.
        cublas_workspace_config: what training sets `CUBLAS_WORKSPACE_CONFIG` to; None takes this
            process's.
    """

    def __init__(
        self,
        card: Card,
        settings: AllocatorSettings | None = None,
        *,
        torch_version: str = "2.11.0",
        devices: int = 1,
        cudnn_benchmark: bool = False,
        cudnn: CudnnBeside | None = None,
        cublas_workspace_config: str | None = None,
    ) -> None:
        self.card = card
        self.settings = settings or AllocatorSettings()
        self.oracle = WorkspaceOracle(card, cudnn, benchmark=cudnn_benchmark)
        environment = dict(os.environ)
        if cublas_workspace_config is not None:
            environment[ENVIRONMENT_VARIABLE] = cublas_workspace_config
        matrix = workspaces(card.compute_capability, torch_version, environment)
        self._matrix = matrix
        self.outside = outside_allocator(card, devices=devices)
        self.release = release_of(torch_version)

    def device_bytes(
        self, convolutions: Sequence[ConvolutionProblem], launches: Sequence[Launch]
    ) -> DeviceBytes:
        """Return what the card answers to these questions.

        Raises:
            BadInputError: the card cannot run one of the convolutions.
        """
        return DeviceBytes(
            convolutions=np.array(self.oracle.bytes_many(convolutions), dtype=np.int64),
            matrix=self._matrix.cublas_bytes,
            light_matrix=self._matrix.lt_bytes,
            launches=self._scratch(launches),
        )

    def _scratch(self, launches: Sequence[Launch]) -> Int64:
        """Return the launches' scratch, bytes `[questions, launches]`."""
        card = self.card
        processors = Processors(
            multiprocessors=card.multiprocessors,
            threads_per_multiprocessor=card.architecture.max_threads_per_multiprocessor,
            shared_memory_per_block_bytes=card.architecture.shared_memory_per_block_optin_bytes,
            compute_capability=card.compute_capability,
        )
        found: Int64 = np.zeros((len(QUESTIONS), len(launches)), dtype=np.int64)
        for column, launch in enumerate(launches):
            for name, num_bytes in zip(
                launch.BUFFERS, launch.scratch_bytes(processors), strict=True
            ):
                found[QUESTIONS.index(name), column] = num_bytes
        return found

    def fallback(
        self, program: Program, convolutions: Sequence[ConvolutionProblem]
    ) -> PlanFallback:
        """Return the plans that a program's convolutions fall back on in one run.

        Args:
            program: what is replayed.
            convolutions: those of its tape, at the batch it is replayed at.
        """
        return PlanFallback(
            program.plan_keys,
            lambda key: self.oracle.plan_bytes(convolutions[program.convolution_of(key)]),
        )

    def run(
        self,
        program: Program,
        sizes: Int64,
        capacity_bytes: int,
        *,
        fallback: PlanFallback | None = None,
        timeline: bool = False,
    ) -> StreamResult:
        """Return the allocator's account of a program with so many bytes to take.

        `fallback`, used once, is what convolutions do whose workspace finds no memory; without it
        the replay ends there.
        """
        return replay_stream(
            program.kinds,
            program.blocks,
            sizes,
            capacity_bytes,
            self.settings,
            torch_version=self.release,
            timeline=timeline,
            fallback=fallback,
        )

    def peaks(
        self,
        program: Program,
        sizes: Int64,
        convolutions: Sequence[ConvolutionProblem] | None = None,
    ) -> Peaks:
        """Return the peaks of a life, and whether it fits the card.

        Where it does not fit, the peaks are those of a card large enough. Where it fits only
        because the allocator empties its cache in time, or because convolutions take slower plans,
        they are those on this card.

        Args:
            program: the life.
            sizes: bytes by replayed event, from `Program.sizes`.
            convolutions: those of the tape at the same batch; None knows of no other plans.
        """
        outside = self.outside.num_bytes
        available = self.card.capacity_bytes - outside
        fallback = None if convolutions is None else self.fallback(program, convolutions)
        needed = self.run(program, sizes, available, fallback=fallback)
        message, num_ooms = needed.oom_message, needed.num_ooms
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
            num_ooms=num_ooms,
            num_slower_plans=fallback.num_convolutions if fallback and not message else 0,
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
    objects: Sequence[int] = (),
) -> Peaks:
    """Return the peaks of a recorded tape on a card.

    Args:
        tape: recorded on any machine.
        card: any card; its own workspaces are asked for.
        settings: allocator options; None takes PyTorch's defaults.
        life: which parts to replay; None replays validation but no accumulation.
        objects: in the fullest image of each step; see `Program.sizes`.

    Raises:
        BadInputError: the card cannot run one of the convolutions.
    """
    return replayed(tape, card, settings, life=life, objects=objects).peaks


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A life that was replayed on a card, with what it took to do so."""

    program: Program
    sizes: Int64
    """Bytes by replayed event, the card's answers filled in."""
    peaks: Peaks


def replayed(
    tape: Tape,
    card: Card,
    settings: AllocatorSettings | None = None,
    *,
    life: Life | None = None,
    objects: Sequence[int] = (),
) -> Replayed:
    """Return the same with the replayed life, for those who ask what is alive when.

    Raises:
        BadInputError: the card cannot run one of the convolutions.
    """
    about = tape.description
    simulator = Simulator(
        card,
        settings,
        torch_version=about.versions.get("torch", "2.11.0"),
        cudnn_benchmark=about.spec.cudnn_benchmark,
        cublas_workspace_config=about.cublas_workspace_config,
    )
    program = Program(tape, life or Life())
    sizes = program.sizes(
        tape.events.requested_bytes,
        simulator.device_bytes(tape.convolutions, tape.launches),
        objects,
    )
    peaks = simulator.peaks(program, sizes, tape.convolutions)
    return Replayed(program=program, sizes=sizes, peaks=peaks)
