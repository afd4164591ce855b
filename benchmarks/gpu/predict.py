"""What memplan says of a case, with no card in sight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.cases import Case
from memplan.advise.question import versions
from memplan.convolution import ConvolutionProblem
from memplan.device.card import Card
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.replay import Peaks, Simulator
from memplan.evaluation.throughput import images_per_second
from memplan.fit.predictor import Predictor
from memplan.planner.rates import stretches_of
from memplan.tape import Int64, Tape

PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes")


@dataclass(frozen=True)
class PredictedLife:
    """A life put together from a recording made with no device."""

    tape: Tape
    program: Program
    sizes: Int64
    """Bytes by replayed event."""
    device: DeviceBytes
    simulator: Simulator

    @classmethod
    def of(cls, case: Case, card: Card) -> PredictedLife:
        """Record a case and fill in what the card answers."""
        question = case.question(card)
        tape = question.record(case.micro_batch_size, question.step_spec)
        simulator = question.simulators()[0]
        program = Program(tape, Life(accumulates=case.accumulation_steps > 1))
        device = simulator.device_bytes(tape.convolutions, tape.launches)
        sizes = program.sizes(tape.events.requested_bytes, device)
        return cls(tape, program, sizes, device, simulator)

    def peaks(self) -> Peaks:
        """Return the life's peaks on the card."""
        return self.simulator.peaks(self.program, self.sizes, self.tape.convolutions)

    def seconds(self) -> dict[str, float]:
        """Return the roofline's time of each stretch, by `section/phase`."""
        found = {}
        card, names = self.simulator.card, _stretch_names(self.tape)
        for name in names:
            (stretch,) = stretches_of(self.tape, card, self.device.convolutions, {name: 1.0})
            found[name] = stretch.predicted_seconds(card.rates)
        return found


def _stretch_names(tape: Tape) -> list[str]:
    from memplan.tape import PHASES, SECTIONS

    operators = tape.operators
    pairs = sorted(set(zip(operators.section.tolist(), operators.phase.tolist(), strict=True)))
    timed = {"micro_batch", "update", "release", "average"}
    return [f"{SECTIONS[a]}/{PHASES[b]}" for a, b in pairs if SECTIONS[a] in timed]


def predict(case: Case, card: Card) -> dict[str, Any]:
    """Return the prediction of a case as plain values."""
    made = {"versions": versions(), "card": card.name, "context_source": card.source}
    if case.kind == "life":
        return {**made, **_life(case, card)}
    if case.kind == "convolutions":
        life = PredictedLife.of(case, card)
        problems = distinct(life.tape.convolutions)
        return {**made, "workspace_bytes": life.simulator.oracle.bytes_many(problems)}
    if case.kind == "batch_norm":
        # The recorder's rule: cuDNN's reserve and workspace are taken as nothing.
        return {**made, "reserve_bytes": 0, "workspace_bytes": 0}
    if case.kind in {"budget", "peer"}:
        return {**made, **_largest(case, card)}
    return {**made, "context_bytes": card.context_bytes}


def _largest(case: Case, card: Card) -> dict[str, Any]:
    """Return the largest batch that fits a smaller card, with the peaks there and one above.

    Images hold as many objects as the battery's batches do, not as many as a data set's might.
    """
    question = case.question(card)
    settings, (simulator,) = question.step_spec, question.simulators()
    batch = case.micro_batch_size
    predictor = Predictor(
        lambda size: question.record(size, settings), [simulator], Life(), batch, batch
    )
    largest = predictor.largest_batch(0).batch
    edge = [(size, predictor.peaks(0, size)) for size in (largest, largest + 1) if size]
    return {
        "largest_batch": largest,
        "edge": [
            {
                "micro_batch_size": size,
                "fits": peaks.fits,
                "num_slower_plans": peaks.num_slower_plans,
                "num_alloc_retries": peaks.num_alloc_retries,
                **{name: getattr(peaks, name) for name in PEAKS},
            }
            for size, peaks in edge
        ],
        "allocator_limit_bytes": (case.budget_gib << 30) - simulator.outside.num_bytes,
    }


def _life(case: Case, card: Card) -> dict[str, Any]:
    life = PredictedLife.of(case, card)
    peaks = life.peaks()
    digest = hashlib.sha256(np.ascontiguousarray(life.sizes).tobytes())
    return {
        **{name: getattr(peaks, name) for name in PEAKS},
        "num_alloc_retries": peaks.num_alloc_retries,
        "fits": peaks.fits,
        "num_events": len(life.sizes),
        "sizes_sha256": digest.hexdigest(),
        "unknown_operators": life.tape.description.unknown_operators,
        "seconds": life.seconds(),
        "images_per_second": images_per_second(
            life.tape, card, life.device.convolutions, case.accumulation_steps
        ),
    }


def distinct(problems: tuple[ConvolutionProblem, ...]) -> list[ConvolutionProblem]:
    """Return each problem that cuDNN can tell apart once, in order of appearance."""
    return list({problem.key(): problem for problem in problems}.values())
