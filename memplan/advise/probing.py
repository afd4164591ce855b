"""Answers where memory goes: probes of one workload on several cards."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memplan import tape as tapes
from memplan.advise.at_peak import tensors_at_peak
from memplan.advise.inference import TRAIN, check_mode, inference_recorder, notes_on_mode
from memplan.advise.life_blocks import life_blocks
from memplan.advise.module_memory import module_memory
from memplan.advise.notes import growth_notes, notes_on
from memplan.advise.other_ranks import other_ranks
from memplan.advise.question import (
    DEFAULT_SAFETY,
    Question,
    check_precision,
    gpu_facts,
    silent,
    warm_up,
)
from memplan.advise.what_if import what_if
from memplan.answers import (
    PREDICTED,
    BatchPeaks,
    FitFacts,
    ProbeAnswer,
    Setting,
    Timeline,
    WhatIf,
    WorkloadFacts,
)
from memplan.blocks import BlockLives
from memplan.device.life import Life, Program
from memplan.device.plan_fallback import PlanFallback
from memplan.device.replay import (
    UNLIMITED_BYTES,
    Peaks,
    Simulator,
    categories_at,
)
from memplan.errors import UsageError
from memplan.fit.edge import Largest, at_first
from memplan.fit.predictor import Predictor, Say
from memplan.fit.program import EveryBatch
from memplan.parallel import kept_processes
from memplan.planner.search import (
    Budget,
    Space,
    fits_budget,
    pareto,
    settings_at,
)
from memplan.spec import StepSpec
from memplan.tape import Int64, Tape, attention_kernels

# Samples of a timeline that a page can show.
_TIMELINE_SAMPLES = 600


def _workload_facts(tape: Tape, spec: StepSpec, devices: int) -> WorkloadFacts:
    about = tape.description
    return WorkloadFacts(
        name=about.workload,
        img=about.image_size,
        spec=spec,
        parameters=about.parameters,
        devices=devices,
        objects_per_image=about.objects_per_image,
    )


def _batch_peaks(batch: int, peaks: Peaks, question: Question) -> BatchPeaks:
    return BatchPeaks(
        micro_batch_size=batch,
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        reserved_peak_bytes=peaks.reserved_peak_bytes,
        device_used_peak_bytes=peaks.device_used_peak_bytes,
        peak_phase=peaks.peak_phase,
        peak_period=peaks.peak_period,
        peak_module=peaks.peak_module,
        fits=peaks.fits,
        objects_in_fullest_image=max(question.objects(batch), default=0),
        num_alloc_retries=peaks.num_alloc_retries,
        num_slower_plans=peaks.num_slower_plans,
    )


def _line(batches: Sequence[BatchPeaks], predictor: Predictor, card: int) -> FitFacts:
    """Return the least-squares line through reserved peaks, and its largest miss.

    Batches that fit only by emptying the cache hold less than they would like; they are left out.
    Of one batch alone, the line goes through it, the other one recorded beside it, and between.
    """
    batches = [row for row in batches if not row.num_alloc_retries] or batches
    sizes = [row.micro_batch_size for row in batches]
    if len(sizes) == 1:
        other = predictor.beside(sizes[0])
        sizes = sorted({sizes[0], (sizes[0] + other) // 2, other})
    peaks = predictor.peaks_many(card, sizes)
    reserved = np.array([one.reserved_peak_bytes for one in peaks], dtype=np.float64)
    slope, base = np.polyfit(sizes, reserved, 1) if len(sizes) > 1 else (0.0, reserved[0])
    growth = predictor.growth
    return FitFacts(
        base_bytes=round(base),
        bytes_per_image=round(slope),
        max_residual_bytes=round(float(np.abs(reserved - (base + slope * np.array(sizes))).max())),
        recorded_batches=predictor.fit.recorded_batches,
        not_affine=predictor.fit.residual_bytes,
        line_batches=tuple(sizes),
        grows_faster=growth.factor if growth else None,
    )


def _timeline(
    program: Program, sizes: Int64, simulator: Simulator, peaks: Peaks, fallback: PlanFallback
) -> Timeline:
    """Return memory by category through a life, one sample at the peak of each stretch."""
    available = simulator.card.capacity_bytes - simulator.outside.num_bytes
    capacity = available if peaks.fits else UNLIMITED_BYTES
    result = simulator.run(program, sizes, capacity, fallback=fallback, timeline=True)
    assert result.reserved_timeline_bytes is not None
    live = program.live_by_category(fallback.applied(sizes))
    total = live.sum(axis=0)
    edges = np.linspace(0, len(total), min(_TIMELINE_SAMPLES, len(total)) + 1).astype(int)
    picks = np.array([a + int(total[a:b].argmax()) for a, b in itertools.pairwise(edges)])
    bands = {name: live[index, picks] for index, name in enumerate(tapes.CATEGORIES)}
    bands["cached"] = np.maximum(0, result.reserved_timeline_bytes[picks] - total[picks])
    bands["context"] = np.full(len(picks), simulator.outside.num_bytes)
    marks: list[tuple[str, str, int]] = []
    for sample, event in enumerate(picks):
        period, phase, _ = program.place(int(event))
        if not marks or marks[-1][:2] != (period, phase):
            marks.append((period, phase, sample))
    return Timeline(
        periods=tuple(marks),
        categories={name: tuple(int(v) for v in band) for name, band in bands.items()},
    )


def _notes_on_plans(
    predictor: Predictor, card: int, wanted: Sequence[int], largest: int
) -> tuple[str, ...]:
    """Return a sentence for each batch that fits only with slower convolutions."""
    batches = sorted({*wanted, largest} - {0})
    peaks = {batch: predictor.peaks(card, batch) for batch in batches}
    return tuple(f"Batch {batch}: {one.note}" for batch, one in peaks.items() if one.note)


def _notes_on_fit(predictor: Predictor) -> tuple[str, ...]:
    notes = []
    if isinstance(predictor.fit, EveryBatch):
        notes.append(
            "This step runs other operators at each batch, so every batch answered for was "
            "recorded."
        )
    notes += growth_notes([*predictor.attempts.tapes.values()])
    return tuple(notes)


def _unchecked(predictor: Predictor, largest: Largest) -> tuple[str, ...]:
    """Return what of an answer could not be checked, a sentence each."""
    sentences = []
    if not largest.is_edge:
        sentences.append(
            f"Whether more than {largest.batch} images fit was not checked: {largest.unchecked}."
        )
    if predictor.is_lone:
        sentences.append("How memory grows with the batch was not checked: no other batch runs.")
    return tuple(sentences)


def _reference(batches: Sequence[BatchPeaks]) -> int:
    """Return the batch that details are about: the largest requested that fits, or the smallest."""
    fitting = [row.micro_batch_size for row in batches if row.fits]
    return max(fitting) if fitting else min(row.micro_batch_size for row in batches)


def _recommended(
    predictor: Predictor, card: int, question: Question, spec: StepSpec, largest: int
) -> Setting | None:
    """Return the fastest micro-batch of this very configuration that leaves a margin, recorded."""
    for best in _fastest(predictor, card, question, spec, largest):
        size = best.split.micro_batch_size
        if predictor.check([size]) and size in predictor.attempts.tapes:
            return best
    return None


def _fastest(
    predictor: Predictor, card: int, question: Question, spec: StepSpec, largest: int
) -> Iterator[Setting]:
    """Yield the fastest setting that leaves a margin, and again without batches that failed."""
    nominal = question.made.nominal_batch_size
    space = Space(
        base=spec,
        effective_batch_size=nominal * question.devices,
        nominal_batch_size=nominal,
        devices=question.devices,
    )
    capacity = predictor.simulators[card].card.capacity_bytes
    budget = Budget(capacity_bytes=capacity, safety_fraction=DEFAULT_SAFETY)
    batches = [batch for batch in space.micro_batches() if batch <= largest]
    while batches:
        found = settings_at(predictor, card, space, spec, batches, None)
        feasible = [setting for setting, peaks in found if fits_budget(peaks, budget)]
        if not feasible:
            return
        yield pareto(feasible)[-1]
        failed = predictor.attempts.failures
        batches = [batch for batch in batches if batch not in failed]


def _check_ahead(predictor: Predictor, question: Question, request: _Request) -> None:
    """Record at once, each on a core, what the answers for all cards are likely to ask for.

    It is told by the program alone; what it tells wrong is recorded when it is asked for.
    """
    if isinstance(predictor.fit, EveryBatch):
        return
    likely: set[int] = set()
    for card in range(len(predictor.simulators)):
        predictor.ask(card, request.wanted)
        largest = predictor.likely_largest(card)
        likely.update(at_first(largest))
        settings = _fastest(predictor, card, question, request.spec(question), largest)
        best = next(settings, None) if request.trains else None
        likely |= {best.split.micro_batch_size} if best is not None else set()
    predictor.check(sorted(likely - {0}))


def _that_run_alike(predictor: Predictor) -> list[list[int]]:
    """Return the cards' indices by group: those of one run the operators that were recorded."""
    tape = predictor.fit.tape(predictor.fit.recorded_batches[0])
    capabilities = [each.card.compute_capability for each in predictor.simulators]
    if all(map(tape.is_for, capabilities)):
        return [[*range(len(capabilities))]]
    groups: dict[str, list[int]] = {}
    for index, capability in enumerate(capabilities):
        groups.setdefault(attention_kernels(capability), []).append(index)
    return [*groups.values()]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked beside the question, and when it was; see `probe_many`."""

    wanted: tuple[int, ...]
    """Micro-batch sizes, rising."""
    mode: str
    half: bool
    changes: bool
    command: str
    say: Say
    keep: Callable[[BlockLives], None] | None
    start: float = field(default_factory=time.perf_counter)

    @property
    def trains(self) -> bool:
        """Whether training is asked about."""
        return self.mode == TRAIN

    def spec(self, question: Question) -> StepSpec:
        """Return how the step runs."""
        return question.step_spec if self.trains else question.spec

    def predictor(self, question: Question) -> Predictor:
        """Return the recordings of what is asked about."""
        spec, trains = self.spec(question), self.trains
        return Predictor(
            question.recorder(spec)
            if trains
            else inference_recorder(question, self.mode, half=self.half),
            question.simulators(),
            Life(accumulates=False, trains=trains),
            self.wanted[0],
            self.wanted[-1],
            self.say,
            **({"objects": question.objects} if trains else {}),
        )


def _probe_each(
    groups: Sequence[Sequence[int]], question: Question, predictor: Predictor, request: _Request
) -> list[ProbeAnswer]:
    """Return the answers for groups of cards, each from recordings of its own.

    Args:
        groups: indices of the question's cards.
        question: what is trained and on what.
        predictor: of all cards, recorded for the first.
        request: what is asked.
    """
    found: dict[int, ProbeAnswer] = {}
    lives: dict[int, BlockLives] = {}
    for group in groups:
        of_group: list[BlockLives] = []
        alone = replace(question, gpus=tuple(question.gpus[index] for index in group))
        own = (
            predictor.on([predictor.simulators[index] for index in group])
            if 0 in group
            else request.predictor(alone)
        )
        keeps = None if request.keep is None else of_group.append
        answers = _answers(alone, own, replace(request, keep=keeps))
        found |= zip(group, answers, strict=True)
        lives |= zip(group, of_group, strict=False)
    for index in sorted(lives):
        assert request.keep is not None
        request.keep(lives[index])
    return [found[index] for index in sorted(found)]


@kept_processes()
def probe_many(
    question: Question,
    batches: Sequence[int],
    *,
    mode: str = TRAIN,
    half: bool = False,
    changes: bool = False,
    command: str = "",
    say: Say = silent,
    keep: Callable[[BlockLives], None] | None = None,
) -> list[ProbeAnswer]:
    """Return, for each card, where a training's memory goes and how it grows with the batch.

    Args:
        question: what is trained and on what.
        batches: micro-batch sizes to answer for, each >= 1.
        mode: `train`, or `val` or `predict` for what running the trained network takes.
        half: run it in half precision.
        changes: whether to say what other levers would change, which records each.
        command: the command line, for the record.
        say: called with a line on what is being done.
        keep: given each card's life at the reference batch block by block, in the order of cards.

    Raises:
        MemplanError: something in the question cannot be used; the message says what.
    """
    request = _Request(
        wanted=tuple(sorted(set(batches))),
        mode=mode,
        half=half,
        changes=changes,
        command=command,
        say=say,
        keep=keep,
    )
    if not request.wanted or request.wanted[0] < 1:
        least = request.wanted[0] if request.wanted else "(none)"
        raise UsageError(f"--batch {least} is below 1. Give at least one image.")
    check_mode(question, mode, half=half)
    question.check()
    for card in question.cards():
        check_precision(card, request.spec(question).precision)
    warm_up()
    predictor = request.predictor(question)
    groups = _that_run_alike(predictor)
    if len(groups) > 1:
        return _probe_each(groups, question, predictor, request)
    return _answers(question, predictor, request)


def _answers(question: Question, predictor: Predictor, request: _Request) -> list[ProbeAnswer]:
    """Return the answer for each card of a predictor.

    What is recorded for one card may bear on the others and on batches replayed before, so all of
    that comes first.
    """
    say, trains, spec = request.say, request.trains, request.spec(question)
    cards = range(len(predictor.simulators))
    edges, recommended = [], []
    _check_ahead(predictor, question, request)
    for card in cards:
        say(f"Replaying on {predictor.simulators[card].card.name}")
        edges.append(predictor.largest_batch(card))
        largest = edges[-1].batch
        one = _recommended(predictor, card, question, spec, largest) if trains else None
        recommended.append(one)
    tables = [_table(predictor, card, question, request.wanted) for card in cards]
    references = [_reference(rows) for rows in tables]
    changed: list[tuple[WhatIf, ...]] = [() for _ in cards]
    if request.changes and trains:
        most = [edge.batch for edge in edges]
        changed = what_if(question, predictor, references, most, say)
    found = zip(edges, recommended, tables, references, changed, strict=True)
    return [
        _answer(question, predictor, card, request, _Found(*each))
        for card, each in enumerate(found)
    ]


def _table(
    predictor: Predictor, card: int, question: Question, wanted: Sequence[int]
) -> tuple[BatchPeaks, ...]:
    peaks = predictor.peaks_many(card, wanted)
    return tuple(
        _batch_peaks(batch, one, question) for batch, one in zip(wanted, peaks, strict=True)
    )


@dataclass(frozen=True)
class _Found:
    """What was found out about one card."""

    edge: Largest
    recommended: Setting | None
    rows: tuple[BatchPeaks, ...]
    reference: int
    changed: tuple[WhatIf, ...]


def _answer(
    question: Question, predictor: Predictor, card: int, request: _Request, found: _Found
) -> ProbeAnswer:
    simulator = predictor.simulators[card]
    largest, reference = found.edge.batch, found.reference
    loaded = predictor.evaluation(card, reference)
    program, sizes = loaded.program, loaded.sizes
    peaks = predictor.peaks(card, reference)
    fallback = simulator.fallback(program, predictor.convolutions(reference))
    timeline = _timeline(program, sizes, simulator, peaks, fallback)
    tape = predictor.fit.tape(reference)
    if request.keep is not None:
        plans = simulator.fallback(program, predictor.convolutions(reference))
        request.keep(
            life_blocks(program, tape, sizes, simulator, peaks, fallback=plans, origin=PREDICTED)
        )
    sizes = fallback.applied(sizes)
    return ProbeAnswer(
        workload=_workload_facts(tape, request.spec(question), question.devices),
        gpu=gpu_facts(simulator),
        fit=_line(found.rows, predictor, card),
        batches=found.rows,
        reference_batch=reference,
        categories_at_peak=categories_at(program, sizes, peaks, simulator.outside.num_bytes),
        modules=module_memory(tape, predictor.device_bytes(card, reference).convolutions),
        largest_batch=largest,
        largest_is_edge=found.edge.is_edge,
        edge=tuple(
            _batch_peaks(batch, predictor.peaks(card, batch), question)
            for batch in (largest, largest + 1)
            if batch and batch in predictor.attempts.tapes
        ),
        one_by_one_range_bytes=predictor.one_by_one_range(card, reference),
        other_ranks=other_ranks(question, simulator, tape),
        recommended=found.recommended,
        timeline=timeline,
        tensors_at_peak=tensors_at_peak(program, tape, sizes, peaks.peak_event),
        what_if=found.changed,
        unknown_operators=tape.description.unknown_operators,
        command=request.command,
        versions=question.versions,
        seconds=time.perf_counter() - request.start,
        notes=(
            *notes_on(simulator, question),
            *notes_on_mode(question, request.mode),
            *_notes_on_fit(predictor),
            *_notes_on_plans(predictor, card, request.wanted, largest),
        ),
        unchecked=_unchecked(predictor, found.edge),
        mode=request.mode,
        half=request.half,
    )
