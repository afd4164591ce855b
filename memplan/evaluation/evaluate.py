"""Evaluates a tape's life on a card: tape -> program -> sizes -> peaks, live bytes and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from memplan.convolution import ConvolutionProblem
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.replay import UNLIMITED_BYTES, Peaks, Simulator
from memplan.evaluation.throughput import images_per_second
from memplan.spec import Split
from memplan.tape import Int64, Tape

# Blocks that vary with the objects leave gaps in reserved memory; below this share of the live
# peak they fit into what other tensors leave free.
_CROWD_MATTERS = 0.01


def thinned(numbers: Sequence[int], count: int) -> Sequence[int]:
    """Return `count` of the numbers, evenly spaced and with both ends; all when they are fewer."""
    if len(numbers) <= count:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]


def crowds_matter(tape: Tape, program: Program, requested: Int64, objects: Sequence[int]) -> bool:
    """Return whether blocks that vary with the objects are more than gaps that others leave.

    Args:
        tape: of the program's structure.
        program: a life of few steps.
        requested: bytes by event of the tape, at the micro-batch size in question.
        objects: in the fullest image of each step.
    """
    largest = program.largest_varying_bytes(requested, max(objects))
    if not largest:
        return False
    sizes = program.sizes(requested, DeviceBytes.none(tape))
    live = int(program.live_by_category(sizes).sum(axis=0).max())
    return largest >= _CROWD_MATTERS * live


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A life on a card.

    Args:
        simulator: the card; None has no workspaces and no peaks.
        program: the life.
        requested: bytes by event of the tape, int64 `[events]`.
        device: what the card answers to the tape's questions.
        convolutions: those of the tape.
        objects: in the fullest image of each step; those of more steps than the life has are
            thinned. Empty takes the batch as it was recorded.
    """

    simulator: Simulator | None
    program: Program
    requested: Int64
    device: DeviceBytes
    convolutions: Sequence[ConvolutionProblem]
    objects: Sequence[int] = ()

    @cached_property
    def sizes(self) -> Int64:
        """Bytes by replayed event, int64 `[events]`."""
        few = thinned(self.objects, self.program.num_steps)
        return self.program.sizes(self.requested, self.device, few)

    @property
    def card(self) -> Simulator:
        """The card that was named."""
        assert self.simulator is not None
        return self.simulator

    @cached_property
    def peaks(self) -> Peaks:
        """The peaks of the life, and whether it fits the card."""
        return self.card.peaks(self.program, self.sizes, self.convolutions)

    @cached_property
    def used_bytes(self) -> int:
        """The device-used peak on a card whose memory has no end."""
        return self.used_with(self.sizes)

    def used_with(self, sizes: Int64) -> int:
        """Return the device-used peak with other bytes by replayed event, no end of memory."""
        result = self.card.run(self.program, sizes, UNLIMITED_BYTES)
        return int(result.reserved_peak_bytes) + self.card.outside.num_bytes

    @cached_property
    def live_bytes(self) -> Int64:
        """What tensors hold after each replayed event, int64 `[events]`."""
        live: Int64 = self.program.live_by_category(self.sizes).sum(axis=0)
        return live

    def with_objects(self, objects: Sequence[int]) -> Evaluation:
        """Return the same life with other numbers of objects in the fullest images."""
        return replace(self, objects=objects)


def evaluate(
    tape: Tape,
    life: Life,
    simulator: Simulator | None,
    objects: Sequence[int] = (),
    *,
    device: DeviceBytes | None = None,
) -> Evaluation:
    """Return a tape's life on a card, each crowd met in a step of its own where crowds matter.

    Args:
        tape: at its micro-batch size.
        life: which parts of a life count.
        simulator: the card; None for tensors alone.
        objects: in the fullest image of each step.
        device: what the card answers to the tape's questions, where that is known already.

    Raises:
        BadInputError: the card cannot run one of the convolutions.
    """
    program, requested = Program(tape, life), tape.events.requested_bytes
    if len(objects) > life.num_steps and crowds_matter(tape, program, requested, objects):
        program = Program(tape, replace(life, num_steps=len(objects)))
    if device is None:
        none = DeviceBytes.none(tape)
        asks = (tape.convolutions, tape.launches)
        device = none if simulator is None else simulator.device_bytes(*asks)
    return Evaluation(
        simulator=simulator,
        program=program,
        requested=requested,
        device=device,
        convolutions=tape.convolutions,
        objects=objects,
    )


def rate_of(tape: Tape, simulator: Simulator, split: Split) -> float:
    """Return images per second of one device."""
    workspaces = simulator.device_bytes(tape.convolutions, tape.launches).convolutions
    return images_per_second(tape, simulator.card, workspaces, split.accumulation_steps)
