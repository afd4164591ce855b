"""Answers whether a training command fits a card as typed, and the cheapest changes that make it.

Every change is replayed: other layouts, blocks that keep less, allocator options and smaller
micro-batches from the plan's recordings, recomputed blocks from their ladder, other validation
batches from a recording of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from memplan.advise.planned import Planned
from memplan.advise.question import Question
from memplan.advise.training_command import TrainingCommand
from memplan.capabilities import validation_batch
from memplan.device.life import Life
from memplan.device.replay import Peaks
from memplan.errors import MemplanError
from memplan.evaluation.bisection import last_holding
from memplan.evaluation.evaluate import evaluate
from memplan.parallel import map_processes
from memplan.plan_answers import CommandChange, CommandFit
from memplan.planner.evaluate import NOTEWORTHY_FRACTION, Evaluator, ends_of
from memplan.planner.recompute import NUM_RUNGS, RecomputeLadder
from memplan.planner.space import DEPARTURE_FRACTION, fits_budget
from memplan.spec import CHOICE, FLAG, LEVER, LEVERS, Split, StepSpec
from memplan.spec_changes import departures, variants
from memplan.tape import Tape

_MOST_CHANGES = 6


@dataclass(frozen=True)
class _Way:
    """One way to run the command, with the options in which it differs from what was typed."""

    changed: frozenset[str]
    spec: StepSpec
    split: Split
    peaks: Peaks
    rate: float
    validation: int | None = None


def command_fit(planned: Planned, typed: TrainingCommand) -> CommandFit:
    """Return whether a command fits the plan's card, and what would make it, least time first."""
    planned.say("Replaying the command as typed")
    typed = replace(typed, spec=replace(planned.question, spec=typed.spec).step_spec)
    inquiry = _Inquiry(planned, typed)
    plain = inquiry.plain
    fits = fits_budget(plain.peaks, planned.budget)
    ways = [*inquiry.ways(), *([] if fits else [*inquiry.recomputed(), *inquiry.validated()])]
    shown = _worth_telling(_good(inquiry, ways, fits=fits))
    # What is reported was recorded; where that is not what was expected, it is looked at anew.
    while off := inquiry.check(shown):
        if off > NOTEWORTHY_FRACTION:
            # Recomputed blocks and other validation batches were recorded by themselves.
            own = [one for one in ways if one.changed & {"recompute", "val_batch"}]
            ways = [*inquiry.ways(), *own]
        ways = [inquiry.anew(one) if one in shown else one for one in ways]
        shown = _worth_telling(_good(inquiry, ways, fits=fits))
    used = plain.peaks.device_used_peak_bytes
    validation = validation_batch(planned.question.made, 1)
    return CommandFit(
        command=typed.text,
        spec=inquiry.base,
        split=typed.split,
        validation_batch_size=None
        if validation is None
        else typed.validation_batch or inquiry.batch * len(next(iter(validation.values()))),
        device_used_peak_bytes=used,
        peak_period=plain.peaks.peak_period,
        images_per_second=plain.rate * typed.split.devices,
        fits=fits,
        fits_card=plain.peaks.fits,
        over_bytes=used - planned.budget.num_bytes,
        changes=tuple(_change(typed, plain, one) for one in shown),
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


def _change(typed: TrainingCommand, plain: _Way, way: _Way) -> CommandChange:
    options = typed.changes(way.spec, way.split)
    if way.validation is not None:
        options["--val-batch"] = str(way.validation)
    used = way.peaks.device_used_peak_bytes
    return CommandChange(
        options=typed.spelt(options, way.spec),
        command=typed.revised(options, way.spec),
        runs_official=set(options) <= {"--batch"},
        spec=way.spec,
        split=way.split,
        device_used_peak_bytes=used,
        memory_change_bytes=used - plain.peaks.device_used_peak_bytes,
        time_change_fraction=plain.rate / way.rate - 1,
    )


def _choices(question: Question, base: StepSpec) -> dict[str, tuple[Any, ...]]:
    """Return the layouts and flags that are tried, those of the command first."""
    choices: dict[str, tuple[Any, ...]] = {}
    for lever in LEVERS:
        value = getattr(base, lever.name)
        if not lever.changes_numbers and lever.kind in {CHOICE, FLAG} and lever.tried:
            tried = lever.choices(question.made, value)
            choices[lever.name] = tuple(sorted(tried, key=lambda one: one != value))
    return choices


class _Inquiry:
    """The ways to run a command on one card."""

    def __init__(self, planned: Planned, typed: TrainingCommand) -> None:
        self.planned, self.typed = planned, typed
        question = planned.question
        self.base = typed.spec
        self.split, self.batch = typed.split, typed.split.micro_batch_size
        splits = planned.space(effective_batch_size=typed.split.effective_batch_size).splits()
        self.splits = [*(one for one in splits if one.micro_batch_size < self.batch), self.split]
        allocator = LEVER["allocator"]
        self.allocators = allocator.choices(question.made, self.base.allocator)
        self.simulators = {one: question.simulator(one) for one in self.allocators}
        self.several = list(variants(self.base, _choices(question, self.base)))
        batches = [one.micro_batch_size for one in self.splits]
        planned.recordings.need(
            [(one, end) for one in self.several for end in ends_of(batches, one)]
        )
        planned.recordings.tape(self.base, self.batch)
        self.several = [one for one in self.several if self._runs(one, batches)]
        self.evaluators = {one: self._evaluator(one, batches) for one in self.several}
        self._failed: set[tuple[StepSpec, int]] = set()
        self.plain = self._way(self.base, self.split, self.base.allocator)

    def _runs(self, spec: StepSpec, batches: list[int]) -> bool:
        """Return whether a way to run could be recorded at some batch."""
        recordings = self.planned.recordings
        return any(recordings.has(spec, batch) for batch in ends_of(batches, spec))

    def check(self, ways: list[_Way]) -> float:
        """Record what is reported; return how far it is off what was expected, infinity if gone."""
        shown = [(self._plain(one.spec), one.split.micro_batch_size) for one in ways]
        recordings = self.planned.recordings
        recordings.need(shown)
        off = [
            self.evaluators[spec].check(batch) for spec, batch in shown if spec in self.evaluators
        ]
        gone = {key for key in shown if recordings.failure(*key) is not None} - self._failed
        self._failed |= gone
        return math.inf if gone else max(off, default=0.0)

    def anew(self, way: _Way) -> _Way:
        """Return a way as its recording has it, where it is one that evaluators answer for."""
        spec = self._plain(way.spec)
        if spec not in self.evaluators or way.validation is not None:
            return way
        return self._way(spec, way.split, way.spec.allocator)

    def _plain(self, spec: StepSpec) -> StepSpec:
        """Return a spec under the allocator options that evaluators are known by."""
        return replace(spec, allocator=self.base.allocator)

    def _evaluator(self, spec: StepSpec, batches: list[int]) -> Evaluator:
        recordings, objects = self.planned.recordings, self.planned.objects
        return Evaluator(recordings, spec, self.simulators, batches, objects)

    def _way(self, spec: StepSpec, split: Split, allocator: str) -> _Way:
        evaluator = self.evaluators[spec]
        tape = evaluator.tape(split.micro_batch_size)
        return self._way_on(tape, evaluator, replace(evaluator.spec, allocator=allocator), split)

    def _way_on(self, tape: Tape, evaluator: Evaluator, spec: StepSpec, split: Split) -> _Way:
        changed = {
            one.name for one in LEVERS if getattr(spec, one.name) != getattr(self.base, one.name)
        }
        return _Way(
            frozenset(changed | ({"batch"} if split != self.split else set())),
            spec,
            split,
            evaluator.peaks(tape, split, spec.allocator),
            evaluator.rate(tape, split),
        )

    def ways(self) -> Iterator[_Way]:
        """Yield the largest micro-batches that fit, for every value that a plan would try."""
        kinds = [(one, allocator) for one in self.several for allocator in self.allocators]
        self.planned.say(f"Replaying changes on {self.planned.simulator.card.name}")
        for found in map_processes(self._largest, kinds, doing="replaying changes of a command"):
            yield from found

    def _largest(self, kind: tuple[StepSpec, str]) -> list[_Way]:
        """Return the ways from the micro-batch as typed down to the first two that fit."""
        spec, allocator = kind
        found: list[_Way] = []
        for split in reversed(self.splits):
            if self.planned.recordings.failure(spec, split.micro_batch_size) is not None:
                continue
            way = self._way(spec, split, allocator)
            if fits_budget(way.peaks, self.planned.budget):
                found.append(way)
            if len(found) == 2 or (found and found[0].split == self.split):
                break
        return [one for one in found if one.changed]

    def recomputed(self) -> Iterator[_Way]:
        """Yield the least recomputing that keeps the micro-batch, in each layout."""
        blocks = self.planned.question.all_blocks
        if self.base.recompute or not blocks:
            return
        for spec in self.several:
            if departures(spec, self.base):
                continue
            self.planned.say("Choosing what to recompute")
            evaluator = self.evaluators[spec]
            evaluator.prepare_recompute(blocks, self.batch)
            if not evaluator.can_recompute:
                continue
            ladder = evaluator.ladder(self.batch)
            if not self._recomputed_fits(spec, ladder.chosen(NUM_RUNGS)):
                continue
            is_over = partial(self._is_over, evaluator, ladder)
            rung = last_holding(is_over, 0, NUM_RUNGS) + 1
            way = self._recorded(spec, ladder.chosen(rung))
            if way is not None:
                yield way

    def _is_over(self, evaluator: Evaluator, ladder: RecomputeLadder, rung: int) -> bool:
        peaks = evaluator.peaks(ladder.tape(rung), self.split, self.base.allocator)
        return not fits_budget(peaks, self.planned.budget)

    def _recomputed_fits(self, spec: StepSpec, paths: tuple[str, ...]) -> bool:
        way = self._recorded(spec, paths)
        return way is not None and fits_budget(way.peaks, self.planned.budget)

    def _recorded(self, spec: StepSpec, paths: tuple[str, ...]) -> _Way | None:
        """Return a way with blocks that recompute, recorded as it runs."""
        one = replace(spec, recompute=paths)
        try:
            tape = self.planned.recordings.tape(one, self.batch)
        except MemplanError:
            return None
        return self._way_on(tape, self.evaluators[spec], one, self.split)

    def validated(self) -> Iterator[_Way]:
        """Yield a smaller validation batch, where validation alone is in the way."""
        question = self.planned.question
        tape = self.planned.recordings.tape(self.base, self.batch)
        evaluator = self.evaluators[self.base]
        life = Life(accumulates=self.split.accumulates, validates=False)
        simulator = self.simulators[self.base.allocator]
        alone = evaluate(tape, life, simulator, self.planned.objects(self.batch)).peaks
        validates = validation_batch(question.made, 1) is not None
        if not validates or not fits_budget(alone, self.planned.budget):
            return
        count = self.typed.validation_batch or 2 * self.batch
        while count > 1:
            count //= 2
            arguments = {**question.arguments, "validation_batch_size": count}
            try:
                tape = replace(question, arguments=arguments).record(self.batch, self.base)
            except MemplanError:
                return
            peaks = evaluator.peaks(tape, self.split, self.base.allocator)
            if fits_budget(peaks, self.planned.budget):
                changed = frozenset({"val_batch"})
                yield replace(self.plain, changed=changed, peaks=peaks, validation=count)
                return
