"""Chooses the best setting that fits a card, among those that give the batch asked for.

Every way to run a step is ranked by its images per second, less one percent for each departure
from the plain way (`memplan.planner.space.score`); the best one that fits wins. Since a setting's
rank depends on nothing but itself, a larger budget never gives a worse plan, and a smaller one
never a higher peak. What cannot win is not looked into: recomputing, lean blocks and other
allocator options only cost speed, so they are tried where a faster setting does not fit, best
prospects first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memplan.answers import Setting
from memplan.device.replay import Peaks, Simulator
from memplan.errors import InfeasibleError
from memplan.evaluation.throughput import images_per_second
from memplan.fit.predictor import Predictor, Say, as_recorded
from memplan.planner.evaluate import Recorder, Recordings
from memplan.planner.explore import Exploration, Found
from memplan.planner.space import (
    Budget,
    Space,
    configurations,
    fits_budget,
    pareto,
    plain_configurations,
    reliefs,
    score,
    setting_of,
)
from memplan.spec import StepSpec
from memplan.spec_changes import departures
from memplan.units import format_bytes

__all__ = [
    "Budget",
    "NothingFitsError",
    "Outcome",
    "Space",
    "configurations",
    "fits_budget",
    "pareto",
    "score",
    "search",
    "setting_of",
    "settings_at",
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The chosen setting and what it was chosen from."""

    chosen: Setting
    pareto: tuple[Setting, ...]
    """Settings that fit and that no other beats in both memory and speed, least memory first."""
    num_evaluated: int
    exact: Setting | None = None
    """The best that fits with the very batch asked for; None where there is none."""
    unsplit: Setting | None = None
    """All images of a step at once in the plain way, whether it fits or not."""


class NothingFitsError(InfeasibleError):
    """No setting fits.

    Args:
        message: one line for the user.
        least: the setting that takes least memory.
        over_bytes: how much more that is than the budget.
    """

    def __init__(self, message: str, least: Setting, over_bytes: int) -> None:
        super().__init__(message)
        self.least = least
        self.over_bytes = over_bytes


def settings_at(
    predictor: Predictor,
    card: int,
    space: Space,
    spec: StepSpec,
    batches: Sequence[int],
    num_images: int | None,
) -> list[tuple[Setting, Peaks]]:
    """Return the settings at several micro-batch sizes of one recorded configuration."""
    found = []
    simulator = predictor.simulators[card]
    for batch, peaks in zip(batches, predictor.peaks_many(card, batches), strict=True):
        rate = images_per_second(
            predictor.fit.tape(batch),
            simulator.card,
            predictor.device_bytes(card, batch).convolutions,
            max(1, space.share // batch),
        )
        setting = setting_of(space, spec, space.split(batch), peaks, rate, num_images)
        found.append((setting, peaks))
    return found


def search(
    recordings: Recorder | Recordings,
    simulators: Simulator | Mapping[str, Simulator],
    space: Space,
    budget: Budget,
    *,
    num_images: int | None = None,
    objects: Callable[[int], Sequence[int]] = as_recorded,
    say: Say,
) -> Outcome:
    """Return the best setting within the budget.

    Args:
        recordings: shared with other searches; or a function that returns, for a configuration,
            the function that records it at a batch.
        simulators: the card, by the allocator options that the space names.
        space: what may be chosen.
        budget: what may be taken.
        num_images: training images in an epoch; None when the data set is not known.
        objects: returns, for a micro-batch size, the objects in the fullest image of each step.
        say: told what is being done.

    Raises:
        NothingFitsError: nothing fits; the message says by how much.
    """
    if not isinstance(recordings, Recordings):
        recordings = Recordings(recordings)
    if isinstance(simulators, Simulator):
        simulators = {space.base.allocator: simulators}
    state = Exploration(recordings, simulators, space, budget, num_images, objects, say)
    first = plain_configurations(space)
    found = None
    while found is None or state.has_learned:
        state.has_learned = False
        _look_into(state, first)
        found = state.verified()
        if found is None and not state.has_learned:
            found = state.least()
            if not fits_budget(found.peaks, budget):
                raise _nothing(state, found)
    good = [one.setting for one in state.fitting()]
    asked = space.share * space.devices
    return Outcome(
        chosen=found.setting,
        pareto=_with(found.setting, good),
        num_evaluated=len(state.found),
        exact=next((one for one in good if one.split.effective_batch_size == asked), None),
        unsplit=_unsplit(state, first),
    )


def _look_into(state: Exploration, first: Sequence[StepSpec]) -> None:
    """Look into all that may win, given what is known."""
    space = state.space
    state.evaluate(first)
    state.try_allocators()

    def ceiling(one: StepSpec) -> float:
        return score(state.plain(one, state.splits[-1]).setting, space)

    for plain in sorted(first, key=ceiling, reverse=True):
        for one in reliefs(plain, space):
            count = departures(one, space.base)
            if any(
                state.may_beat(plain, split, count) and not state.is_outdone(plain, split)
                for split in state.splits
            ):
                state.evaluate([one])
                state.try_allocators()
    state.try_recompute()


def _with(chosen: Setting, good: Sequence[Setting]) -> tuple[Setting, ...]:
    """Return the Pareto set up to the chosen setting, which ends it.

    Settings that are faster by less than they depart from the plain way are left out.
    """
    front = pareto(
        [
            one
            for one in good
            if one.predicted.images_per_second < chosen.predicted.images_per_second
            and one.predicted.device_used_peak_bytes < chosen.predicted.device_used_peak_bytes
        ]
    )
    return (*front, chosen)


def _unsplit(state: Exploration, several: Sequence[StepSpec]) -> Setting | None:
    """Return the fastest configuration with all images of a step at once."""
    last = state.splits[-1]
    if last.accumulation_steps > 1:
        return None
    settings = [
        state.plain(one, last).setting
        for one in several
        if state.recordings.failure(one, last.micro_batch_size) is None
    ]
    if not settings:
        return None
    return max(settings, key=lambda one: one.predicted.images_per_second)


def _nothing(state: Exploration, least: Found) -> NothingFitsError:
    need = least.setting.predicted.device_used_peak_bytes
    over = need - state.budget.num_bytes
    setting = least.setting
    message = (
        f"Nothing fits {state.card.title}: the least is micro-batch "
        f"{setting.split.micro_batch_size} ({setting.spec.words()}) with {format_bytes(need)} "
        f"device-used (predicted) against a budget of {format_bytes(state.budget.num_bytes)}, "
        f"{format_bytes(over)} too much."
    )
    return NothingFitsError(message, least.setting, over)
