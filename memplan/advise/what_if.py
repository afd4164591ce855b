"""Answers what one lever set otherwise would change: each change replayed at the same batch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memplan.advise.question import Question, check_precision
from memplan.answers import WhatIf
from memplan.device.replay import Simulator
from memplan.errors import MemplanError, first_sentence
from memplan.evaluation.throughput import images_per_second
from memplan.fit.predictor import Predictor, Say
from memplan.spec import ALL_BLOCKS, LEVERS, StepSpec, of_tape

_OTHER_OPTIMIZERS = ("AdamW", "SGD")
_MOST_BITS = "fp32"
# A change goes into the combination where it saves more than this part of the peak.
_SAVES_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class Change:
    """A configuration that differs from the one asked about."""

    options: str
    """As typed."""
    spec: StepSpec
    keeps_numbers: bool
    """Whether losses and speed of learning stay as they are, with nothing computed twice."""


def changes(question: Question) -> Iterator[Change]:
    """Yield every single change worth a line: the values that a plan would try, and a few more.

    Those are another optimizer, and all blocks recomputed. What only takes more memory, fp32 in
    place of half precision, is left out, and so is what the workload does not offer.
    """
    base, workload = question.step_spec, question.made
    for lever in LEVERS:
        now = getattr(base, lever.name)
        for value in _values(lever.name, lever.tried, question):
            if value in {now, _MOST_BITS} or not lever.is_offered(workload, value):
                continue
            is_all = lever.name == "recompute"
            yield Change(
                options=shlex.join(lever.typed(ALL_BLOCKS if is_all else value)),
                spec=replace(base, **{lever.name: value}),
                keeps_numbers=bool(lever.tried) and not lever.changes_numbers and not is_all,
            )


def _values(name: str, tried: tuple[Any, ...], question: Question) -> tuple[Any, ...]:
    if name == "optimizer":
        return tuple(one for one in _OTHER_OPTIMIZERS if one != question.step_spec.optimizer)[:1]
    if name == "recompute":
        is_set = bool(question.step_spec.recompute)
        return () if is_set or not question.all_blocks else (question.all_blocks,)
    return tried


def what_if(
    question: Question,
    asked: Predictor,
    references: Sequence[int],
    largest: Sequence[int],
    say: Say,
) -> list[tuple[WhatIf, ...]]:
    """Return, for each card, the setting as asked and what each change would make of it.

    Args:
        question: what was asked.
        asked: its predictor, whose recordings serve for what tapes do not differ by.
        references: the micro-batch size to compare at, by card.
        largest: the largest that fits as asked, by card.
        say: told what is being done.
    """
    base = Change(options="", spec=question.step_spec, keeps_numbers=True)
    plain = _on_cards(base, question, asked, references, say)
    found = [[replace(a, largest_batch=b) for a, b in zip(plain, largest, strict=True)]]
    tried = list(changes(question))
    for number, change in enumerate(tried, start=1):
        say(f"What would change it, {number} of {len(tried)}: {change.options}")
        found.append(_on_cards(change, question, asked, references, say))
    together = _together(base, list(zip(tried, found[1:], strict=True)), found[0])
    if together is not None:
        say(f"What would change it: {together.options}")
        found.append(_on_cards(together, question, asked, references, say))
    return [tuple(rows[card] for rows in found) for card in range(len(references))]


def _together(
    base: Change, tried: Sequence[tuple[Change, Sequence[WhatIf]]], before: Sequence[WhatIf]
) -> Change | None:
    """Return all at once that saves on some card and changes no number; None of fewer than two."""
    good = [
        change for change, rows in tried if change.keeps_numbers and any(map(_saves, rows, before))
    ]
    if len(good) < 2:
        return None
    spec = base.spec
    for change in good:
        spec = replace(
            spec,
            **{
                one.name: value
                for one in LEVERS
                if (value := getattr(change.spec, one.name)) != getattr(base.spec, one.name)
            },
        )
    options = " ".join(change.options for change in good)
    return Change(options=options, spec=spec, keeps_numbers=True)


def _saves(one: WhatIf, before: WhatIf) -> bool:
    least = (1 - _SAVES_FRACTION) * before.device_used_peak_bytes
    return not one.refusal and one.device_used_peak_bytes < least


def _on_cards(
    change: Change, question: Question, asked: Predictor, references: Sequence[int], say: Say
) -> list[WhatIf]:
    simulators = _simulators(change.spec, question, asked)
    try:
        predictor = _predictor(change.spec, question, asked, simulators, references, say)
    except MemplanError as error:
        refusal = first_sentence(error)
        return [_refused(change, batch, refusal) for batch in references]
    rows = []
    for card, batch in enumerate(references):
        try:
            check_precision(simulators[card].card, change.spec.precision)
            rows.append(_replayed(change, predictor, card, batch, question.devices))
        except MemplanError as error:
            rows.append(_refused(change, batch, first_sentence(error)))
    return rows


def _simulators(spec: StepSpec, question: Question, asked: Predictor) -> Sequence[Simulator]:
    if spec.allocator == question.step_spec.allocator:
        return asked.simulators
    return replace(question, spec=spec).simulators()


def _predictor(
    spec: StepSpec,
    question: Question,
    asked: Predictor,
    simulators: Sequence[Simulator],
    references: Sequence[int],
    say: Say,
) -> Predictor:
    if of_tape(spec) == of_tape(question.step_spec):
        return asked.on(simulators)
    return Predictor(
        question.recorder(spec),
        simulators,
        asked.life,
        min(references),
        max(references),
        say,
        objects=question.objects,
    )


def _replayed(change: Change, predictor: Predictor, card: int, batch: int, devices: int) -> WhatIf:
    peaks = predictor.peaks(card, batch)
    rate = images_per_second(
        predictor.fit.tape(batch),
        predictor.simulators[card].card,
        predictor.device_bytes(card, batch).convolutions,
        1,
    )
    return WhatIf(
        options=change.options,
        spec=change.spec,
        micro_batch_size=batch,
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        reserved_peak_bytes=peaks.reserved_peak_bytes,
        device_used_peak_bytes=peaks.device_used_peak_bytes,
        fits=peaks.fits,
        largest_batch=predictor.likely_largest(card),
        images_per_second=rate * devices,
    )


def _refused(change: Change, batch: int, reason: str) -> WhatIf:
    return WhatIf(options=change.options, spec=change.spec, micro_batch_size=batch, refusal=reason)
