"""What part of its peak rates a card reaches, fitted to measured stretches of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.device.card import Card, Rates
from memplan.errors import BadInputError
from memplan.evaluation.throughput import (
    Float64,
    least_arithmetic_seconds,
    least_memory_seconds,
    roofline,
)
from memplan.tape import Int64, Tape

# Parts of a peak, and seconds, between which a card's real figures lie with room to spare.
_LEAST_FRACTION, _LEAST_LAUNCH, _MOST_LAUNCH = 0.01, 1e-7, 1e-3
_FIELDS = {"amp-fp16": "fp16_fraction", "amp-bf16": "bf16_fraction", "fp32": "fp32_fraction"}


@dataclass(frozen=True)
class Stretch:
    """Operators that ran one after another, and how long they took together."""

    precision: str
    arithmetic: Float64
    """Seconds of each operator's arithmetic at the full peak rate."""
    memory: Float64
    """Seconds of each operator's bytes at the full bandwidth."""
    seconds: float
    """Measured."""

    def predicted_seconds(self, rates: Rates) -> float:
        """Return what the roofline says it takes."""
        return float(roofline(self.arithmetic, self.memory, rates, self.precision).sum())


@dataclass(frozen=True)
class FittedRates:
    """Rates that explain measured stretches best."""

    rates: Rates
    precisions: tuple[str, ...]
    """Those that were measured; the others keep the default."""
    median_error_fraction: float
    """Median distance of fitted from measured times, as a part of these."""


def stretches_of(
    tape: Tape, card: Card, workspace_bytes: Int64, seconds: Mapping[str, float]
) -> list[Stretch]:
    """Return the timed stretches of a tape.

    Args:
        tape: of what was timed.
        card: its peak rates.
        workspace_bytes: by index of the tape's convolutions.
        seconds: by `section/phase`, such as `micro_batch/forward`; what the tape lacks is left out.
    """
    arithmetic = least_arithmetic_seconds(tape, card)
    memory = least_memory_seconds(tape, card, workspace_bytes)
    found = []
    for name, measured in seconds.items():
        section, _, phase = name.partition("/")
        if section not in tapes.SECTIONS or phase not in tapes.PHASES or measured <= 0:
            continue
        rows = (tape.operators.section == tapes.SECTIONS.index(section)) & (
            tape.operators.phase == tapes.PHASES.index(phase)
        )
        if rows.any():
            about = tape.description
            found.append(Stretch(about.spec.precision, arithmetic[rows], memory[rows], measured))
    return found


def fit_rates(stretches: Sequence[Stretch]) -> FittedRates:
    """Return the rates with the least squared error of the logarithms of times.

    Relative errors count, so that a short stretch weighs as much as a long one. What no stretch
    depends on keeps its default.

    Raises:
        BadInputError: there are no stretches.
    """
    from scipy.optimize import least_squares

    if not stretches:
        raise BadInputError("Nothing was timed, so no rates can be fitted. Measure on the card.")
    precisions = tuple(sorted({stretch.precision for stretch in stretches}))
    fields = [*(_FIELDS[name] for name in precisions), "bandwidth_fraction", "launch_seconds"]
    default = Rates()

    def rates_at(logs: npt.NDArray[np.float64]) -> Rates:
        values = dict(zip(fields, np.exp(logs).tolist(), strict=True))
        return replace(default, is_measured=True, **values)

    def errors(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        rates = rates_at(logs)
        ratios = [stretch.predicted_seconds(rates) / stretch.seconds for stretch in stretches]
        logs_of_ratios: npt.NDArray[np.float64] = np.log(np.array(ratios))
        return logs_of_ratios

    start = np.log([getattr(default, name) for name in fields])
    low = [_LEAST_LAUNCH if name == "launch_seconds" else _LEAST_FRACTION for name in fields]
    high = [_MOST_LAUNCH if name == "launch_seconds" else 1.0 for name in fields]
    found = least_squares(errors, start, bounds=(np.log(low), np.log(high)))
    rates = rates_at(np.minimum(found.x, np.log(high)))
    off = [abs(one.predicted_seconds(rates) / one.seconds - 1) for one in stretches]
    return FittedRates(rates, precisions, float(np.median(off)))
