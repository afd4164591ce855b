"""What one configuration takes and how fast it is at any batch, from recordings that are shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from memplan import tape as tapes
from memplan.device.life import DeviceBytes, Life
from memplan.device.replay import Peaks, Simulator
from memplan.errors import MemplanError, first_sentence
from memplan.evaluation.evaluate import evaluate, rate_of
from memplan.evaluation.throughput import Float64, operator_seconds
from memplan.fit.affine import fit
from memplan.fit.attempts import Failed, attempted
from memplan.fit.predictor import as_recorded
from memplan.fit.program import EveryBatch, Fit
from memplan.planner.recompute import RecomputeLadder, is_inside, parts_of_large
from memplan.planner.splice import Splicer
from memplan.spec import Split, StepSpec, of_tape
from memplan.tape import Int64, Tape

# From this batch on YOLOv9 and torchvision's models keep their structure; smaller ones are read
# off the same program, and a plan that takes one is recorded by itself.
_FIRST_RECORDED = 3
_MOST_RECORDED = 512
# A recording that differs from what was expected by a larger part bears on other batches too.
NOTEWORTHY_FRACTION = 0.001

Recorder = Callable[[StepSpec], Callable[[int], Tape]]
Key = tuple[StepSpec, int]


def _recorded(recorder_of: Recorder, key: Key) -> Tape:
    settings, batch = key
    return recorder_of(settings)(batch)


class Recordings:
    """Tapes by configuration and batch, each recorded once, several side by side.

    No one asked for these very recordings: one that fails only means that there is no such tape.

    Args:
        recorder_of: returns, for a configuration, the function that records it at a batch.
    """

    def __init__(self, recorder_of: Recorder) -> None:
        self.recorder_of = recorder_of
        self._tapes: dict[Key, Tape] = {}
        self._failed: dict[Key, MemplanError] = {}

    def tape(self, settings: StepSpec, batch: int) -> Tape:
        """Return a tape, recorded now if it was not yet.

        Raises:
            MemplanError: it cannot be recorded.
        """
        self.need([(settings, batch)])
        key = of_tape(settings), batch
        if key in self._failed:
            raise self._failed[key]
        return self._tapes[key]

    def has(self, settings: StepSpec, batch: int) -> bool:
        """Return whether a tape was recorded already."""
        return (of_tape(settings), batch) in self._tapes

    def failure(self, settings: StepSpec, batch: int) -> MemplanError | None:
        """Return why a tape could not be recorded; None where it was, or was not tried."""
        return self._failed.get((of_tape(settings), batch))

    def any_failure(self) -> MemplanError:
        """Return why the first of all that could not be recorded was not."""
        return next(iter(self._failed.values()))

    @property
    def failures(self) -> dict[int, str]:
        """Why batches could not be recorded, whatever the configuration, ascending."""
        return {
            batch: first_sentence(error)
            for (_, batch), error in sorted(self._failed.items(), key=lambda one: -one[0][1])
        }

    def need(self, keys: Sequence[Key]) -> None:
        """Record what is missing, as many at a time as there are cores."""
        known = self._tapes.keys() | self._failed.keys()
        wanted = dict.fromkeys((of_tape(settings), batch) for settings, batch in keys)
        missing = [key for key in wanted if key not in known]
        for key, one in attempted(partial(_recorded, self.recorder_of), missing, ()).items():
            if isinstance(one, Failed):
                self._failed[key] = one.error
            else:
                self._tapes[key] = one

    def recorded(self, settings: StepSpec) -> list[Tape]:
        """Return the tapes of a configuration so far, in descending order of their batches."""
        own = of_tape(settings)
        mine = [(batch, tape) for (of, batch), tape in self._tapes.items() if of == own]
        return [tape for _, tape in sorted(mine, key=lambda one: -one[0])]

    def keep(self, settings: StepSpec, batch: int, tape: Tape) -> None:
        """Take a tape that was made elsewhere as recorded."""
        self._tapes[of_tape(settings), batch] = tape

    def fit(self, settings: StepSpec, batches: Sequence[int]) -> Fit | EveryBatch:
        """Return the program of a configuration, recorded at two batches and all known ones.

        Args:
            settings: the configuration.
            batches: those that will be asked about.

        Raises:
            MemplanError: it can be recorded at none of them.
        """

        def record_many(batches: Sequence[int]) -> dict[int, Tape]:
            self.need([(settings, batch) for batch in batches])
            return {one: self.tape(settings, one) for one in batches if self.has(settings, one)}

        first, last = self._ends(settings, batches)
        fitted = fit(record_many, first, last, lambda _, high: high.description.micro_batch_size)
        for tape in self.recorded(settings):
            fitted = fitted.learned(tape)
        return fitted

    def _ends(self, settings: StepSpec, batches: Sequence[int]) -> tuple[int, int]:
        """Return the batches to record at: those of `ends_of`, or the largest that can be."""
        ends = ends_of(batches, settings)
        good = []
        for batch in dict.fromkeys((*ends, *sorted(batches, reverse=True))):
            self.need([(settings, one) for one in (*ends, batch)])
            good += [batch] if self.has(settings, batch) else []
            if len(good) == 2:
                break
        if not good:
            raise self._failed[of_tape(settings), ends[1]]
        return min(good), max(good)


def ends_of(batches: Sequence[int], spec: StepSpec) -> tuple[int, int]:
    """Return the batches at which a program for others is recorded, one odd and one even."""
    # From (n - 1) n images on there are always n parts; smaller batches have fewer, by the batch.
    parts = spec.assigner_parts
    first = min(max(_FIRST_RECORDED, parts * (parts - 1)), max(batches))
    if len(batches) > 1:
        first = max(first, min(batches))
    last = min(max(batches), _MOST_RECORDED)
    if last == first:
        return (first, 2 * first) if first % 2 else (first, first + 1)
    return (first, last) if (last - first) % 2 else (first, last + 1)


class Evaluator:
    """Answers for one configuration on one card, whatever the batch and the allocator's options.

    Args:
        recordings: shared by all configurations.
        spec: the configuration.
        simulators: the card, by allocator options.
        batches: micro-batch sizes that will be asked about.
        objects: returns, for a micro-batch size, the objects in the fullest image of each step.
    """

    def __init__(
        self,
        recordings: Recordings,
        spec: StepSpec,
        simulators: Mapping[str, Simulator],
        batches: Sequence[int],
        objects: Callable[[int], Sequence[int]] = as_recorded,
    ) -> None:
        self.spec = spec
        self._recordings = recordings
        self._simulators = simulators
        self._objects = objects
        self._any = next(iter(simulators.values()))
        self.card = self._any.card
        self.fit = recordings.fit(spec, batches)
        self._layers: list[tuple[str, ...]] = []
        self._splicers: dict[int, Splicer] = {}
        self._tapes: dict[int, Tape] = {}

    def check(self, *batches: int) -> float:
        """Record batches, those that can be; answers for them are their recordings' from then on.

        Returns:
            The largest part of a step's bytes by which a recording is off what the program said of
            it: 0 where all are event by event as expected, infinity where operators differ.
        """
        self._recordings.need([(self.spec, batch) for batch in batches])
        most = 0.0
        for batch in sorted(set(batches) - set(self.fit.recorded_batches), reverse=True):
            if self._recordings.has(self.spec, batch):
                tape = self._recordings.tape(self.spec, batch)
                most = max(most, self.fit.piece(batch).deviation(tape))
                self.fit = self.fit.learned(tape)
        if most:
            self._tapes.clear()
        return most

    def tape(self, batch: int) -> Tape:
        """Return the tape at a batch, as recorded where it was.

        Where each batch has operators of its own and this one fails, it is the largest there is.
        """
        if batch not in self._tapes:
            recorded = self._recordings.has(self.spec, batch)
            failed = self._recordings.failure(self.spec, batch) is not None
            known = self.fit.recorded_batches[-1]
            lacks = failed and isinstance(self.fit, EveryBatch)
            self._tapes[batch] = (
                self._recordings.tape(self.spec, batch)
                if recorded
                else self.fit.tape(known if lacks else batch)
            )
        return self._tapes[batch]

    def answers(self, tape: Tape) -> DeviceBytes:
        """Return what the card answers to a tape's questions."""
        return self._any.device_bytes(tape.convolutions, tape.launches)

    def rate(self, tape: Tape, split: Split) -> float:
        """Return images per second of one device."""
        return rate_of(tape, self._any, split)

    def peaks(self, tape: Tape, split: Split, allocator: str) -> Peaks:
        """Return the peaks of the life of a tape."""
        objects = self._objects(tape.description.micro_batch_size)
        life = Life(accumulates=split.accumulates)
        return evaluate(tape, life, self._simulators[allocator], objects).peaks

    def prepare_recompute(self, blocks: tuple[str, ...], batch: int) -> None:
        """Record what ladders take: every block recomputed, and every part of the large ones.

        Args:
            blocks: paths of modules that may be recomputed.
            batch: at which to record; ladders at others are worked out from that.
        """
        parts = parts_of_large(self.tape(batch), blocks)
        layers = [paths for paths in (blocks, parts) if paths]
        recomputing = {paths: replace(self.spec, recompute=paths) for paths in layers}
        self._recordings.need([(one, batch) for one in recomputing.values()])
        self._layers = [one for one in layers if self._recordings.has(recomputing[one], batch)]
        self._splicers = {batch: self._spliced(batch)} if self._layers else {}

    @property
    def can_recompute(self) -> bool:
        """Whether a step in which blocks are recomputed was recorded, so that there are ladders."""
        return bool(self._layers)

    def _spliced(self, batch: int) -> Splicer:
        layers = [
            (self._recordings.tape(replace(self.spec, recompute=paths), batch), paths)
            for paths in self._layers
        ]
        # As the program has it, so that tapes of all batches have one structure.
        return Splicer(self.fit.tape(batch), layers)

    def _splicer(self, batch: int) -> Splicer:
        """Return what can be recomputed at a batch, recorded there if there is no other way."""
        if batch not in self._splicers:
            first = next(iter(self._splicers.values()))
            moved = first.moved_to(self.fit.tape(batch))
            self._splicers[batch] = moved if moved is not None else self._spliced(batch)
        return self._splicers[batch]

    def ladder(self, batch: int) -> RecomputeLadder:
        """Return the ladder of what to recompute at a batch, after `prepare_recompute`."""

        def seconds_of(tape: Tape) -> Float64:
            return operator_seconds(tape, self._any.card, self.answers(tape).convolutions)

        def bytes_of(tape: Tape) -> Int64:
            return self.answers(tape).filled(tape.events.requested_bytes, tape.events)

        return RecomputeLadder(self._splicer(batch), seconds_of, bytes_of)

    def forward_seconds(self, tape: Tape, paths: Sequence[str]) -> dict[str, float]:
        """Return the time that each module's forward takes, those inside it included."""
        seconds = operator_seconds(tape, self.card, self.answers(tape).convolutions)
        operators = tape.operators
        runs = (operators.section == tapes.SECTIONS.index("micro_batch")) & (
            operators.phase == tapes.PHASES.index("forward")
        )
        of_module = np.zeros(len(tape.modules) + 1)
        np.add.at(of_module, operators.module[runs], seconds[runs])
        return {
            path: sum(
                float(of_module[index])
                for index, module in enumerate(tape.modules)
                if is_inside(module.path, path)
            )
            for path in paths
        }
