"""Answers whether a training command fits a card as typed, and the cheapest changes that make it.

Every change is replayed: other layouts, lean blocks, allocator options and smaller micro-batches
from the recordings of the plan, recomputed blocks from their ladder, other validation batches from
a recording of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memplan.api.asking import Planned
from memplan.api.typed import TypedCommand
from memplan.capabilities import Lean
from memplan.device.life import Life, Program
from memplan.device.replay import Peaks
from memplan.errors import MemplanError
from memplan.parallel import map_processes
from memplan.plan_answers import CommandChange, CommandFit
from memplan.planner.evaluate import NOTEWORTHY_FRACTION, Evaluator, ends_of
from memplan.planner.recompute import NUM_RUNGS
from memplan.planner.space import DEPARTURE_FRACTION, Split, fits_budget
from memplan.spec import MEMORY_FORMATS, StepSpec

_EXPANDABLE = "expandable_segments:True"
_MOST_CHANGES = 6


@dataclass(frozen=True)
class _Way:
    """One way to run the command, with the options in which it differs from what was typed."""

    changed: frozenset[str]
    settings: StepSpec
    split: Split
    allocator: str
    peaks: Peaks
    rate: float
    validation: int | None = None


def command_fit(planned: Planned, typed: TypedCommand) -> CommandFit:
    """Return whether a command fits the plan's card, and what would make it, least time first."""
    planned.say("Replaying the command as typed")
    inquiry = _Inquiry(planned, typed)
    plain = inquiry.plain
    fits = fits_budget(plain.peaks, planned.budget)
    ways = [*inquiry.ways(), *([] if fits else [*inquiry.recomputed(), *inquiry.validated()])]
    told = _worth_telling(_good(inquiry, ways, fits=fits))
    # What is told was recorded; where that is not what was expected, it is looked at anew.
    while off := inquiry.check(told):
        if off > NOTEWORTHY_FRACTION:
            # Recomputed blocks and other validation batches were recorded by themselves.
            own = [one for one in ways if one.changed & {"recompute", "val_batch"}]
            ways = [*inquiry.ways(), *own]
        ways = [inquiry.anew(one) if one in told else one for one in ways]
        told = _worth_telling(_good(inquiry, ways, fits=fits))
    used = plain.peaks.device_used_peak_bytes
    validation = planned.question.made.make_validation_batch(1)
    return CommandFit(
        command=typed.text,
        micro_batch_size=typed.batch,
        accumulation_steps=typed.accumulation,
        effective_batch_size=typed.batch * typed.accumulation,
        validation_batch_size=None
        if validation is None
        else typed.validation_batch or typed.batch * len(next(iter(validation.values()))),
        device_used_peak_bytes=used,
        peak_period=plain.peaks.peak_period,
        images_per_second=plain.rate,
        fits=fits,
        fits_card=plain.peaks.fits,
        over_bytes=used - planned.budget.num_bytes,
        changes=tuple(_change(typed, plain, one) for one in told),
        assumptions=typed.assumptions,
    )


def _good(inquiry: _Inquiry, ways: list[_Way], *, fits: bool) -> list[_Way]:
    """Return the ways that fit and, where the command does already, are faster."""
    good = [one for one in ways if fits_budget(one.peaks, inquiry.planned.budget)]
    if not fits:
        return good
    return [one for one in good if one.rate * (1 - DEPARTURE_FRACTION) > inquiry.plain.rate]


def _worth_telling(ways: list[_Way]) -> list[_Way]:
    """Return the ways of which none with a part of the changes is as fast, least time first."""
    fastest = sorted(ways, key=lambda one: (-one.rate, len(one.changed)))
    kept = [
        way
        for way in fastest
        if not any(
            other is not way
            and other.changed <= way.changed
            and (other.changed < way.changed or other.rate > way.rate)
            and other.rate >= way.rate * (1 - DEPARTURE_FRACTION)
            for other in fastest
        )
    ]
    return kept[:_MOST_CHANGES]


def _change(typed: TypedCommand, plain: _Way, way: _Way) -> CommandChange:
    options: dict[str, str] = {}
    if "memory_format" in way.changed:
        options["--memory-format"] = way.settings.memory_format
    if "lean" in way.changed:
        options["--lean"] = ""
    if "recompute" in way.changed:
        options["--recompute"] = ",".join(way.settings.recompute)
    if "batch" in way.changed:
        options["--batch"] = str(way.split.micro_batch_size)
        if typed.accumulation_at(way.split.micro_batch_size) != way.split.accumulation_steps:
            options["--accumulate"] = str(way.split.accumulation_steps)
    if way.validation is not None:
        options["--val-batch"] = str(way.validation)
    allocator = way.allocator if "allocator" in way.changed else ""
    used = way.peaks.device_used_peak_bytes
    return CommandChange(
        options=typed.spelt(options, allocator),
        command=typed.revised(options, allocator),
        runs_official=set(options) <= {"--batch"},
        micro_batch_size=way.split.micro_batch_size,
        accumulation_steps=way.split.accumulation_steps,
        effective_batch_size=way.split.micro_batch_size * way.split.accumulation_steps,
        device_used_peak_bytes=used,
        memory_change_bytes=used - plain.peaks.device_used_peak_bytes,
        time_change_fraction=plain.rate / way.rate - 1,
    )


class _Inquiry:
    """The ways to run a command on one card."""

    def __init__(self, planned: Planned, typed: TypedCommand) -> None:
        self.planned, self.typed = planned, typed
        question = planned.question
        self.base = replace(planned.base, lean=typed.lean, recompute=typed.recompute)
        self.splits = planned.space(effective_batch_size=typed.batch * typed.accumulation).splits()
        self.split = Split(typed.batch, typed.accumulation)
        smaller = [one for one in self.splits if one.micro_batch_size < typed.batch]
        self.splits = [*smaller, self.split]
        self.allocators = [question.allocator]
        if not question.allocator:
            self.allocators.append(_EXPANDABLE)
        self.simulators = {one: planned.simulator_under(one) for one in self.allocators}
        leans = (
            [False, True] if isinstance(question.made, Lean) and not typed.lean else [typed.lean]
        )
        self.several = [
            replace(self.base, memory_format=layout, lean=lean)
            for layout in sorted(MEMORY_FORMATS, key=lambda one: one != self.base.memory_format)
            for lean in leans
        ]
        batches = [one.micro_batch_size for one in self.splits]
        planned.recordings.need([(one, end) for one in self.several for end in ends_of(batches)])
        planned.recordings.tape(self.base, typed.batch)
        self.several = [one for one in self.several if self._runs(one, batches)]
        self.evaluators = {one: self._evaluator(one, batches) for one in self.several}
        self._failed: set[tuple[StepSpec, int]] = set()
        self.plain = self._way(self.base, self.split, question.allocator)

    def _runs(self, settings: StepSpec, batches: list[int]) -> bool:
        """Return whether a way to run could be recorded at some batch."""
        recordings = self.planned.recordings
        return any(recordings.has(settings, batch) for batch in ends_of(batches))

    def check(self, ways: list[_Way]) -> float:
        """Record what is told; return by how much it is off what was expected, infinity if gone."""
        told = [(one.settings, one.split.micro_batch_size) for one in ways]
        recordings = self.planned.recordings
        recordings.need(told)
        off = [
            self.evaluators[settings].check(batch)
            for settings, batch in told
            if settings in self.evaluators
        ]
        gone = {key for key in told if recordings.failure(*key) is not None} - self._failed
        self._failed |= gone
        return math.inf if gone else max(off, default=0.0)

    def anew(self, way: _Way) -> _Way:
        """Return a way as its recording has it, where it is one that evaluators answer for."""
        if way.settings not in self.evaluators or way.validation is not None:
            return way
        return self._way(way.settings, way.split, way.allocator)

    def _evaluator(self, settings: StepSpec, batches: list[int]) -> Evaluator:
        recordings, objects = self.planned.recordings, self.planned.objects
        return Evaluator(recordings, settings, self.simulators, batches, objects)

    def _way(self, settings: StepSpec, split: Split, allocator: str) -> _Way:
        evaluator = self.evaluators[settings]
        tape = evaluator.tape(split.micro_batch_size)
        steps = split.accumulation_steps
        differs = {
            "memory_format": settings.memory_format != self.base.memory_format,
            "lean": settings.lean != self.base.lean,
            "allocator": allocator != self.planned.question.allocator,
            "batch": split != self.split,
        }
        return _Way(
            frozenset(name for name, differ in differs.items() if differ),
            settings,
            split,
            allocator,
            evaluator.peaks(tape, steps, allocator),
            evaluator.rate(tape, steps),
        )

    def ways(self) -> Iterator[_Way]:
        """Yield the largest micro-batches that fit, for every layout, lean or not, allocator."""
        kinds = [(one, allocator) for one in self.several for allocator in self.allocators]
        self.planned.say(f"Replaying changes on {self.planned.simulator.card.name}")
        for found in map_processes(self._largest, kinds, doing="replaying changes of a command"):
            yield from found

    def _largest(self, kind: tuple[StepSpec, str]) -> list[_Way]:
        """Return the ways from the micro-batch as typed down to the first two that fit."""
        settings, allocator = kind
        found: list[_Way] = []
        for split in reversed(self.splits):
            if self.planned.recordings.failure(settings, split.micro_batch_size) is not None:
                continue
            way = self._way(settings, split, allocator)
            if fits_budget(way.peaks, self.planned.budget):
                found.append(way)
            if len(found) == 2 or (found and found[0].split == self.split):
                break
        return [one for one in found if one.changed]

    def recomputed(self) -> Iterator[_Way]:
        """Yield the least recomputing that keeps the micro-batch, in each layout."""
        if self.typed.recompute or not self.planned.question.all_blocks:
            return
        blocks = self.planned.question.all_blocks
        for settings in self.several:
            if settings.lean != self.base.lean:
                continue
            self.planned.say("Choosing what to recompute")
            evaluator = self.evaluators[settings]
            evaluator.prepare_recompute(blocks, self.typed.batch)
            if not evaluator.can_recompute:
                continue
            ladder = evaluator.ladder(self.typed.batch)
            low, high = 0, NUM_RUNGS
            if not self._recomputed_fits(settings, ladder.chosen(high)):
                continue
            while high - low > 1:
                middle = (low + high) // 2
                fits = self._fits(evaluator, ladder.tape(middle))
                low, high = (low, middle) if fits else (middle, high)
            way = self._recorded(settings, ladder.chosen(high))
            if way is not None:
                yield way

    def _fits(self, evaluator: Evaluator, tape: object) -> bool:
        allocator = self.planned.question.allocator
        peaks = evaluator.peaks(tape, self.split.accumulation_steps, allocator)  # type: ignore[arg-type]
        return fits_budget(peaks, self.planned.budget)

    def _recomputed_fits(self, settings: StepSpec, paths: tuple[str, ...]) -> bool:
        way = self._recorded(settings, paths)
        return way is not None and fits_budget(way.peaks, self.planned.budget)

    def _recorded(self, settings: StepSpec, paths: tuple[str, ...]) -> _Way | None:
        """Return a way with blocks that recompute, recorded as it runs."""
        allocator = self.planned.question.allocator
        evaluator = self.evaluators[settings]
        one = replace(settings, recompute=paths)
        try:
            tape = self.planned.recordings.tape(one, self.typed.batch)
        except MemplanError:
            return None
        plain = self._way(settings, self.split, allocator)
        steps = self.split.accumulation_steps
        return replace(
            plain,
            changed=plain.changed | {"recompute"},
            settings=one,
            peaks=evaluator.peaks(tape, steps, allocator),
            rate=evaluator.rate(tape, steps),
        )

    def validated(self) -> Iterator[_Way]:
        """Yield a smaller validation batch, where validation alone is in the way."""
        question = self.planned.question
        tape = self.planned.recordings.tape(self.base, self.typed.batch)
        evaluator = self.evaluators[self.base]
        life = Life(accumulates=self.split.accumulation_steps > 1, validates=False)
        program = Program(tape, life)
        crowds = self.planned.objects(self.typed.batch)[-program.num_steps :]
        sizes = program.sizes(tape.events.requested_bytes, evaluator.answers(tape), crowds)
        simulator = self.simulators[question.allocator]
        alone = simulator.peaks(program, sizes, tape.convolutions)
        validates = question.made.make_validation_batch(1) is not None
        if not validates or not fits_budget(alone, self.planned.budget):
            return
        count = self.typed.validation_batch or 2 * self.typed.batch
        while count > 1:
            count //= 2
            arguments = {**question.arguments, "validation_batch_size": count}
            try:
                tape = replace(question, arguments=arguments).record(self.typed.batch, self.base)
            except MemplanError:
                return
            peaks = evaluator.peaks(tape, self.split.accumulation_steps, question.allocator)
            if fits_budget(peaks, self.planned.budget):
                changed = frozenset({"val_batch"})
                yield replace(self.plain, changed=changed, peaks=peaks, validation=count)
                return
