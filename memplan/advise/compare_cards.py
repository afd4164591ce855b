"""Answers which card of the catalogue to take for a run.

For each card and layout the micro-batches are looked into from the fastest down, as the roofline
without workspace bounds them, until none left can win; so the best is found without replaying all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from memplan.advise.notes import attention_note
from memplan.advise.planned import Planned, replayed_with_rate
from memplan.advise.planning import plan_one
from memplan.answers import Setting
from memplan.device import catalogue
from memplan.device.card import Card
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.errors import InfeasibleError, MemplanError, UsageError
from memplan.evaluation.evaluate import evaluate
from memplan.evaluation.throughput import images_per_second
from memplan.parallel import map_processes
from memplan.plan_answers import CardChoice, CardOption
from memplan.planner.evaluate import NOTEWORTHY_FRACTION, Evaluator, ends_of
from memplan.planner.space import Budget, configurations, fits_budget, score, setting_of
from memplan.spec import MEMORY_FORMATS, Split, StepSpec
from memplan.tape import Tape
from memplan.units import GIB

PER_WATT = "images/s for each watt of the board's power limit"
PER_PRICE = "images/s for each unit of the prices given"


def read_prices(texts: Sequence[str]) -> dict[str, float]:
    """Return prices by catalogue name from `CARD=AMOUNT` texts.

    Raises:
        UnknownNameError: there is no such card.
        UsageError: a text is no price, or the price is not above 0.
    """
    prices: dict[str, float] = {}
    for text in texts:
        name, equals, amount = text.rpartition("=")
        try:
            price = float(amount)
        except ValueError:
            price = float("nan")
        if not equals or not name or np.isnan(price) or np.isinf(price):
            raise UsageError(f"--price {text!r} is not CARD=AMOUNT, such as rtx-3090=700.")
        if price <= 0:
            raise UsageError(f"--price {text}: {amount} is not above 0. Give what the card costs.")
        prices[catalogue.card(name).name] = price
    return prices


def card_choice(planned: Planned, prices: Mapping[str, float]) -> CardChoice:
    """Return what every card of the catalogue would do with a plan's run.

    Args:
        planned: the run; its layouts and micro-batches are free, its precision stays.
        prices: by catalogue name, in one unit; empty compares by watt.
    """
    inquiry = _Inquiry(planned)
    planned.say(f"Planning for {len(catalogue.cards())} cards")
    what = "planning for cards"
    made = map_processes(inquiry.best, catalogue.cards(), doing=what)
    while changed := inquiry.check([setting for _, setting in made if setting is not None]):
        bears = [one for one, (_, its) in enumerate(made) if inquiry.bears_on(its, changed)]
        again = [catalogue.cards()[one] for one in bears]
        for one, found in zip(bears, map_processes(inquiry.best, again, doing=what), strict=True):
            made[one] = found
    options = [
        _option(card, budget, setting or inquiry.nothing, prices.get(card.name))
        for card, (budget, setting) in zip(catalogue.cards(), made, strict=True)
    ]
    ordered = sorted(options, key=lambda one: (not one.fits, -one.images_per_second))
    good = [one for one in ordered if one.fits]
    valued = [one for one in good if not prices or one.price is not None]
    return CardChoice(
        cards=tuple(ordered),
        smallest=min(good, key=_size).name if good else None,
        fastest=good[0].name if good else None,
        best_value=max(valued, key=_value).name if valued else None,
        value=PER_PRICE if prices else PER_WATT,
        notes=_notes(next(iter(inquiry.tapes.values()), None)),
    )


def _notes(tape: Tape | None) -> tuple[str, ...]:
    """Return a sentence on the cards that run other operators than were recorded, if any do."""
    if tape is None or not (note := attention_note(tape, catalogue.cards())):
        return ()
    return (note,)


def _size(one: CardOption) -> tuple[int, float]:
    # Cards sold with as much memory differ by some hundredths of a GiB.
    return round(one.capacity_bytes / GIB), one.images_per_second


def _value(one: CardOption) -> float:
    return one.images_per_second_per_price or one.images_per_joule


def _option(card: Card, budget: Budget, setting: Setting, price: float | None) -> CardOption:
    rate = setting.predicted.images_per_second
    return CardOption(
        name=card.name,
        capacity_bytes=card.capacity_bytes,
        fits=setting.split.micro_batch_size > 0,
        spec=setting.spec,
        split=setting.split,
        device_used_peak_bytes=setting.predicted.device_used_peak_bytes,
        budget_bytes=budget.num_bytes,
        images_per_second=rate,
        images_per_joule=rate / card.tdp_watts,
        watts=card.tdp_watts,
        price=price,
        images_per_second_per_price=rate / price if price else None,
    )


class _Inquiry:
    """Programs of the plain ways to run, shared by all cards."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.space = planned.space(choices={"memory_format": MEMORY_FORMATS})
        self.splits = self.space.splits()
        self.batches = [one.micro_batch_size for one in self.splits]
        self.several = list(configurations(self.space))
        planned.say("Recording what all cards run")
        planned.recordings.need(
            [(one, end) for one in self.several for end in ends_of(self.batches, one)]
        )
        simulators = {self.space.base.allocator: planned.simulator}
        self.tapes: dict[tuple[int, int], Tape] = {}
        self._live: dict[tuple[int, int], int] = {}
        self.evaluators = [
            Evaluator(planned.recordings, one, simulators, self.batches, planned.objects)
            for one in self.several
        ]
        self._checked: set[tuple[StepSpec, int]] = set()
        self._read_tapes(range(len(self.several)))

    def _read_tapes(self, numbers: Iterable[int]) -> None:
        """Take the tapes of ways to run as their programs are now, without those that fail."""
        for number in numbers:
            for batch in self.batches:
                self._live.pop((number, batch), None)
                if self.planned.recordings.failure(self.several[number], batch) is None:
                    self.tapes[number, batch] = self.evaluators[number].tape(batch)
                else:
                    self.tapes.pop((number, batch), None)

    def check(self, settings: Sequence[Setting]) -> dict[tuple[StepSpec, int], float]:
        """Record the settings that cards would run, and return those that are not as expected.

        By how much, as a part of all bytes; infinity where one cannot be recorded. Settings with
        recomputed blocks are plans of their own, which were recorded.
        """
        recordings = self.planned.recordings
        ways = {self._recording_of(one) for one in settings}
        shown = [(one, batch) for one, batch in ways if one in self.several]
        shown = [key for key in sorted(shown, key=lambda one: -one[1]) if key not in self._checked]
        recordings.need(shown)
        self._checked |= set(shown)
        changed = {}
        for one, batch in shown:
            failed = recordings.failure(one, batch) is not None
            off = self.evaluators[self.several.index(one)].check(batch)
            if failed or off:
                changed[one, batch] = math.inf if failed else off
        self._read_tapes({self.several.index(one) for one, _ in changed})
        return changed

    def _recording_of(self, setting: Setting) -> tuple[StepSpec, int]:
        spec = replace(setting.spec, allocator=self.space.base.allocator)
        return spec, setting.split.micro_batch_size

    def bears_on(
        self, setting: Setting | None, changed: Mapping[tuple[StepSpec, int], float]
    ) -> bool:
        """Return whether what is not as expected may change a card's setting."""
        if max(changed.values()) > NOTEWORTHY_FRACTION:
            return True
        return setting is not None and (self._recording_of(setting) in changed)

    @property
    def nothing(self) -> Setting:
        """What a card does on which nothing fits."""
        predicted = replace(
            self.planned.chosen.predicted, device_used_peak_bytes=0, images_per_second=0.0
        )
        split = Split(micro_batch_size=0, accumulation_steps=0, devices=self.space.devices)
        return replace(self.planned.chosen, spec=self.space.base, split=split, predicted=predicted)

    def budget(self, card: Card) -> Budget:
        """Return what the run may take of a card that nobody else uses."""
        fraction = self.planned.budget.safety_fraction
        return Budget(capacity_bytes=card.capacity_bytes, safety_fraction=fraction)

    def best(self, card: Card) -> tuple[Budget, Setting | None]:
        """Return a card's budget and the best setting; None where none fits."""
        budget = self.budget(card)
        if self.space.base.precision == "amp-bf16" and not card.supports_bfloat16:
            return budget, None
        try:
            return budget, self._plain(card, budget) or self._any(card)
        except MemplanError:  # a card that cannot run one of the convolutions
            return budget, None

    def _plain(self, card: Card, budget: Budget) -> Setting | None:
        question = replace(self.planned.question, gpus=(card,), capacity_bytes=None)
        simulator = question.simulators()[0]
        prospects = sorted(
            (
                (self._bound(number, split, card), number, split)
                for number in range(len(self.several))
                for split in self.splits
                if (number, split.micro_batch_size) in self.tapes
            ),
            key=lambda one: -one[0],
        )
        best: Setting | None = None
        for bound, number, split in prospects:
            if best is not None and bound <= best.predicted.images_per_second:
                break
            setting = self._setting(simulator, budget, number, split)
            if setting and (best is None or score(setting, self.space) > score(best, self.space)):
                best = setting
        return best

    def _bound(self, number: int, split: Split, card: Card) -> float:
        """Return images a second that the workspaces' traffic can only lower."""
        tape = self.tapes[number, split.micro_batch_size]
        nothing = np.zeros(len(tape.convolutions), dtype=np.int64)
        return images_per_second(tape, card, nothing, split.accumulation_steps)

    def _setting(
        self, simulator: Simulator, budget: Budget, number: int, split: Split
    ) -> Setting | None:
        """Return a setting on a card; None where it does not fit."""
        tape = self.tapes[number, split.micro_batch_size]
        if self._live_bytes(number, split) + simulator.outside.num_bytes > budget.num_bytes:
            return None
        peaks, rate = replayed_with_rate(self.planned, simulator, tape, split)
        if not fits_budget(peaks, budget):
            return None
        return setting_of(self.space, self.several[number], split, peaks, rate)

    def _live_bytes(self, number: int, split: Split) -> int:
        """Return activations alone, which any card must hold."""
        tape = self.tapes[number, split.micro_batch_size]
        key = (number, split.micro_batch_size)
        if key not in self._live:
            alone = evaluate(tape, Life(accumulates=split.accumulates), None)
            self._live[key] = int(alone.live_bytes.max())
        return self._live[key]

    def _any(self, card: Card) -> Setting | None:
        """Return the best with every lever, for a card that no plain setting fits."""
        question = replace(self.planned.question, gpus=(card,), capacity_bytes=None)
        try:
            plan = plan_one(
                question,
                effective_batch_size=self.planned.asked_batch_size,
                safety_fraction=self.planned.budget.safety_fraction,
                free=self.planned.free,
                recordings=self.planned.recordings,
            )
        except InfeasibleError:
            return None
        return plan.alternatives[-1]
