"""What a search has looked into so far, and how it looks into more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memplan import tape as tapes
from memplan.answers import Setting
from memplan.device.card import Card
from memplan.device.replay import Peaks, Simulator
from memplan.evaluation.bisection import last_holding
from memplan.fit.predictor import Say
from memplan.fit.program import EveryBatch
from memplan.parallel import map_processes
from memplan.planner.evaluate import (
    NOTEWORTHY_FRACTION,
    Evaluator,
    Key,
    Recordings,
    ends_of,
)
from memplan.planner.recompute import NUM_RUNGS, kept_bytes, parts_of_large
from memplan.planner.space import (
    DEPARTURE_FRACTION,
    Budget,
    Space,
    fits_budget,
    score,
    setting_of,
)
from memplan.spec import Split, StepSpec

# Prospects looked into at a time, whatever the number of cores, so that it changes nothing.
_AT_ONCE = 2


@dataclass(frozen=True)
class Found:
    """A setting that was looked into."""

    setting: Setting
    peaks: Peaks
    rung: int = 0


@dataclass(frozen=True)
class Prospect:
    """A micro-batch and allocator of a configuration that may win with some blocks recomputed."""

    spec: StepSpec
    """Without the allocator's further options."""
    split: Split
    allocator: str
    bound: float
    """Score that it cannot exceed."""


class Exploration:
    """The state of one search; see `search` for the arguments."""

    def __init__(
        self,
        recordings: Recordings,
        simulators: Mapping[str, Simulator],
        space: Space,
        budget: Budget,
        num_images: int | None,
        objects: Callable[[int], Sequence[int]],
        say: Say,
    ) -> None:
        self.recordings = recordings
        self.simulators = simulators
        self.space = space
        self.budget = budget
        self.num_images = num_images
        self.objects = objects
        self.say = say
        self.splits = space.splits()
        self.outside_bytes = next(iter(simulators.values())).outside.num_bytes
        self.evaluators: dict[StepSpec, Evaluator] = {}
        self.found: dict[Key, Found] = {}
        self.refuted: set[Key] = set()
        """What cannot be recorded."""
        self.has_learned = False
        """Whether a recording was not what was expected, so that more is to be looked into."""
        self._recorded: set[Key] = set()
        self._climbed: set[tuple[StepSpec, Split, str]] = set()

    def add(self, one: Found) -> None:
        """Remember what was looked into, unless it was recorded already."""
        key = (one.setting.spec, one.setting.split.micro_batch_size)
        if key not in self._recorded:
            self.found[key] = one

    def fitting(self) -> list[Found]:
        """Return what fits, the best first; of equals the first that was looked into."""
        good = [
            one
            for key, one in self.found.items()
            if fits_budget(one.peaks, self.budget) and key not in self.refuted
        ]
        return sorted(good, key=lambda one: -score(one.setting, self.space))

    def best_score(self) -> float:
        """Return the score to beat."""
        good = self.fitting()
        return score(good[0].setting, self.space) if good else 0.0

    def look(
        self,
        evaluator: Evaluator,
        split: Split,
        allocator: str,
    ) -> Found:
        """Return what a configuration takes at a split, as it is."""
        return self.found_on(evaluator, evaluator.tape(split.micro_batch_size), split, allocator)

    def found_on(
        self, evaluator: Evaluator, tape: tapes.Tape, split: Split, allocator: str, rung: int = 0
    ) -> Found:
        """Return what a tape of a configuration takes at its split."""
        peaks = evaluator.peaks(tape, split, allocator)
        recompute = tape.description.spec.recompute or evaluator.spec.recompute
        spec = replace(evaluator.spec, recompute=recompute, allocator=allocator)
        rate = evaluator.rate(tape, split)
        setting = setting_of(self.space, spec, split, peaks, rate, self.num_images)
        return Found(setting, peaks, rung)

    # The plain way, for every layout and precision

    def evaluate(self, several: Sequence[StepSpec]) -> None:
        """Look into configurations at every split."""
        batches = [split.micro_batch_size for split in self.splits]
        several = [settings for settings in several if settings not in self.evaluators]
        if not several:
            return
        keys = [(settings, batch) for settings in several for batch in ends_of(batches, settings)]
        self.say(f"Recording {len(keys)} steps, {describe(several)}")
        self.recordings.need(keys)
        for settings in several:
            self.evaluators[settings] = Evaluator(
                self.recordings, settings, self.simulators, batches, self.objects
            )
        # Recorded here, since what a forked process records is lost with it.
        each = [one for one in several if isinstance(self.evaluators[one].fit, EveryBatch)]
        self.recordings.need([(settings, batch) for settings in each for batch in batches])
        work = [(settings, split) for settings in several for split in self.splits]
        self._refute([(settings, batch) for settings in several for batch in batches])
        self.say(f"Replaying {len(work)} settings on {self.card.name}")
        self._look_many(work, self.space.base.allocator)

    @property
    def card(self) -> Card:
        """The card."""
        return next(iter(self.simulators.values())).card

    def _refute(self, keys: Sequence[tuple[StepSpec, int]]) -> None:
        """Remember which of some configurations and batches cannot be recorded, so not be run."""
        for settings, batch in keys:
            if self.recordings.failure(settings, batch) is not None:
                for allocator in self.space.allocators:
                    self.refuted.add((replace(settings, allocator=allocator), batch))

    def _look_many(self, work: Sequence[tuple[StepSpec, Split]], allocator: str) -> None:
        look = partial(self._look_at, allocator)
        made = map_processes(look, work, doing="replaying settings")
        for one in made:
            self.add(one)

    def _look_at(self, allocator: str, one: tuple[StepSpec, Split]) -> Found:
        settings, split = one
        return self.look(self.evaluators[settings], split, allocator)

    def may_beat(self, settings: StepSpec, split: Split, departures: int) -> bool:
        """Return whether the plain setting, that much less, would be better than all that fits."""
        if self.recordings.failure(settings, split.micro_batch_size) is not None:
            return False
        plain = self.plain(settings, split)
        ceiling = score(plain.setting, self.space) * (1 - DEPARTURE_FRACTION) ** departures
        return not fits_budget(plain.peaks, self.budget) and ceiling > self.best_score()

    def plain(self, settings: StepSpec, split: Split) -> Found:
        """Return what was found for a configuration with the first allocator."""
        return self.found[settings, split.micro_batch_size]

    # Other allocator options

    def try_allocators(self) -> None:
        """Look into further allocator options where live tensors alone would fit."""
        for allocator in self.space.allocators[1:]:
            work = [
                (settings, split)
                for settings in self.evaluators
                for split in self.splits
                if self.may_beat(settings, split, 1)
                and self.plain(settings, split).peaks.allocated_peak_bytes + self.outside_bytes
                <= self.budget.num_bytes
            ]
            if work:
                self.say(f"Replaying {len(work)} settings with {allocator}")
                self._look_many(work, allocator)

    # Recomputing some blocks

    def prospects(self) -> list[Prospect]:
        """Return what may win with some blocks recomputed, the best bound first."""
        made = []
        for settings, evaluator in self.evaluators.items():
            for split in self.splits:
                if not self.may_beat(settings, split, 1) or self.is_outdone(settings, split):
                    continue
                bound = self._bound(evaluator, split)
                for extra, allocator in enumerate(self.space.allocators):
                    most = bound * (1 - DEPARTURE_FRACTION) ** min(extra, 1)
                    climbed = (settings, split, allocator) in self._climbed
                    if most > self.best_score() and not climbed:
                        made.append(Prospect(settings, split, allocator, most))
        return sorted(made, key=lambda one: -one.bound)

    def is_outdone(self, settings: StepSpec, split: Split) -> bool:
        """Return whether another configuration takes less and is faster with nothing recomputed.

        Recomputing the same blocks saves and costs nearly the same in both.
        """
        mine = self.plain(settings, split).setting.predicted
        others = (
            self.plain(other, split).setting.predicted
            for other in self.evaluators
            if other != settings
        )
        return any(
            other.device_used_peak_bytes <= mine.device_used_peak_bytes
            and other.images_per_second > mine.images_per_second
            for other in others
        )

    def _bound(self, evaluator: Evaluator, split: Split) -> float:
        """Return a score that recomputing cannot exceed; 0 where it cannot save enough.

        As if blocks could be recomputed in part, and kept nothing: a fractional knapsack over
        bytes freed and seconds spent (Dantzig 1957).
        """
        plain = self.plain(evaluator.spec, split)
        tape = evaluator.tape(split.micro_batch_size)
        missing = plain.peaks.allocated_peak_bytes + self.outside_bytes - self.budget.num_bytes
        parts = parts_of_large(tape, self.space.blocks)
        units = [
            *parts,
            *(b for b in self.space.blocks if not any(p.startswith(f"{b}.") for p in parts)),
        ]
        kept = kept_bytes(tape, units)
        spent = evaluator.forward_seconds(tape, units)
        extra = 0.0
        for unit in sorted(units, key=lambda u: spent[u] / max(kept[u], 1)):
            if missing <= 0:
                break
            part = min(1.0, missing / max(kept[unit], 1))
            extra += part * spent[unit]
            missing -= round(part * kept[unit])
        # Tensors directly in large blocks are in no unit; they are a small part.
        if missing > 0.05 * plain.peaks.allocated_peak_bytes:
            return 0.0
        images = split.micro_batch_size * self.space.devices
        seconds = images / plain.setting.predicted.images_per_second + extra
        ratio = images / seconds / plain.setting.predicted.images_per_second
        return score(plain.setting, self.space) * ratio * (1 - DEPARTURE_FRACTION)

    def try_recompute(self) -> None:
        """Look into recomputing, best prospects first, until none can win."""
        if not self.space.blocks:
            return
        waiting = self.prospects()
        done: set[StepSpec] = set()
        while waiting and waiting[0].bound > self.best_score():
            now = waiting[:_AT_ONCE]
            waiting = waiting[_AT_ONCE:]
            for settings in dict.fromkeys(one.spec for one in now):
                if settings not in done:
                    done.add(settings)
                    batch = next(o.split.micro_batch_size for o in now if o.spec == settings)
                    self.say(f"Recording what recomputing saves, {describe([settings])}")
                    self.evaluators[settings].prepare_recompute(self.space.blocks, batch)
            now = [one for one in now if self.evaluators[one.spec].can_recompute]
            if not now:
                continue
            self._climbed |= {(one.spec, one.split, one.allocator) for one in now}
            self.say(f"Choosing what to recompute at batch {now[0].split.micro_batch_size}")
            made = map_processes(self.climb, now, doing="choosing what to recompute")
            for found in itertools.chain.from_iterable(made):
                self.add(found)

    def climb(self, prospect: Prospect) -> list[Found]:
        """Return what was found on the way to the first rung that fits.

        Halving over a fixed ladder looks at the same rungs in the same order whatever the budget,
        so a smaller budget never ends on an earlier rung.
        """
        evaluator = self.evaluators[prospect.spec]
        ladder = evaluator.ladder(prospect.split.micro_batch_size)

        def at(rung: int) -> Found:
            tape = ladder.tape(rung)
            return self.found_on(evaluator, tape, prospect.split, prospect.allocator, rung)

        found = [at(NUM_RUNGS)]

        def is_over(rung: int) -> bool:
            found.append(at(rung))
            return not fits_budget(found[-1].peaks, self.budget)

        if fits_budget(found[0].peaks, self.budget):
            last_holding(is_over, 0, NUM_RUNGS)
        return found

    # The answer

    def verified(self) -> Found | None:
        """Return the best setting whose own recording fits; None where there is none.

        Whatever was put together, interpolated or extrapolated is recorded at its batch with its
        blocks really recomputed, and replayed. Where that is not what was expected, the other
        batches of its configuration are looked at anew, and the best of all is taken again.
        """
        while good := self.fitting():
            key = next(key for key, one in self.found.items() if one is good[0])
            if key in self._recorded:
                return good[0]
            self._take_recorded(key)
        return None

    def _take_recorded(self, key: Key) -> None:
        """Put what is recorded of a setting in place of what was expected of it."""
        spec, batch = key
        settings = replace(spec, allocator=self.space.base.allocator)
        expected = self.found[key]
        if not self.recordings.has(settings, batch):
            self.say(f"Recording the chosen setting at batch {batch}")
        self.recordings.need([(settings, batch)])
        self._refute([(settings, batch)])
        if key in self.refuted:
            self.has_learned = True
            return
        self._recorded.add(key)
        evaluator = (
            self.evaluators.get(settings) or self.evaluators[replace(settings, recompute=())]
        )
        off = evaluator.check(batch) if evaluator.spec == settings else 0.0
        tape = self.recordings.tape(settings, batch)
        split = expected.setting.split
        one = self.found_on(evaluator, tape, split, spec.allocator, expected.rung)
        self.found[key] = replace(one, setting=replace(one.setting, spec=spec))
        if off > NOTEWORTHY_FRACTION:
            self.has_learned = True
            self._look_again(evaluator)

    def _look_again(self, evaluator: Evaluator) -> None:
        """Look at all that was found for a configuration with its program as it is now."""
        settings = evaluator.spec
        for split in self.splits:
            for allocator in self.space.allocators:
                key = (replace(settings, allocator=allocator), split.micro_batch_size)
                if key in self.found and key not in self._recorded:
                    self.found[key] = self.look(evaluator, split, allocator)
                self._climbed.discard((settings, split, allocator))

    def least(self) -> Found:
        """Return what takes least memory, one image at a time and all that can be recomputed.

        It is recorded as it would run.

        Raises:
            MemplanError: nothing can be recorded.
        """
        if self.space.blocks:
            self._recompute_all()
        while True:
            left = [(key, one) for key, one in self.found.items() if key not in self.refuted]
            if not left:
                raise self.recordings.any_failure()
            key, one = min(left, key=lambda one: one[1].peaks.device_used_peak_bytes)
            if key in self._recorded:
                return one
            self._take_recorded(key)

    def _recompute_all(self) -> None:
        """Look into recomputing all that can be, at the smallest batch."""
        split = self.splits[0]
        settings = min(
            self.evaluators, key=lambda one: self.plain(one, split).peaks.device_used_peak_bytes
        )
        evaluator = self.evaluators[settings]
        self.say(f"Recording what recomputing saves at batch {split.micro_batch_size}")
        evaluator.prepare_recompute(self.space.blocks, split.micro_batch_size)
        if not evaluator.can_recompute:
            return
        tape = evaluator.ladder(split.micro_batch_size).tape(NUM_RUNGS)
        for allocator in self.space.allocators:
            self.add(self.found_on(evaluator, tape, split, allocator, NUM_RUNGS))


def describe(several: Sequence[StepSpec]) -> str:
    """Return configurations in a few words."""
    return "; ".join(one.words() for one in several)
