"""How long a step takes: a roofline over the tape's operators.

Each operator takes the longer of its arithmetic at the precision's peak rate and its bytes at the
memory's rate, and never less than a launch. Convolution workspace is the copies of a layout
change, so its bytes are moved once more in each direction. Small batches under-fill a card, which
shows as operators that cost their launch and no less, and as convolutions whose last wave of
thread blocks leaves multiprocessors idle (`memplan.evaluation.waves`). What part of the peaks is
reached is the card's `Rates`: measured where the card was calibrated.

Limits: without a calibration, one part of the peak stands for all kernels; the ranking of
settings is what this is for, and absolute times are off by tens of percent. Input pipeline and
host are assumed to keep up.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.device.card import Card, Precision, Rates
from memplan.evaluation.waves import wasted_by_operator
from memplan.tape import Int64, Tape

Float64 = npt.NDArray[np.float64]

# PyTorch's names of what cuDNN may run in TF32 while matrix products stay in float32.
# Source: `torch.backends.cudnn.allow_tf32` is True by default, `cuda.matmul.allow_tf32` is False.
_CONVOLVES = "convolution"


def moved_bytes(tape: Tape, workspace_bytes: Int64) -> Float64:
    """Return the bytes each operator reads and writes, workspace included, float64 `[operators]`.

    Args:
        tape: at the micro-batch size in question.
        workspace_bytes: by index of the tape's convolutions.
    """
    moved = tape.operators.moved_bytes.astype(np.float64)
    asks = tape.events.asks == tapes.CONVOLUTION
    np.add.at(
        moved,
        tape.events.operator[asks],
        2.0 * workspace_bytes[tape.events.about[asks]],
    )
    return moved


def least_arithmetic_seconds(tape: Tape, card: Card) -> Float64:
    """Return each operator's arithmetic at the card's full peak rate, float64 `[operators]`.

    Convolutions that leave a part of the card idle take longer; see `memplan.evaluation.waves`.
    """
    about = tape.description.spec
    peaks = np.full(len(tape.operators.flops), card.peak_flops(cast("Precision", about.precision)))
    if about.precision == "fp32" and about.allow_tf32:
        convolves = np.array([_CONVOLVES in name for name in tape.operator_names], dtype=bool)
        peaks[convolves[tape.operators.name]] = card.peak_flops("tf32")
    seconds: Float64 = tape.operators.flops / peaks
    return seconds * wasted_by_operator(tape, card.multiprocessors)


def least_memory_seconds(tape: Tape, card: Card, workspace_bytes: Int64) -> Float64:
    """Return the time each operator's bytes take at the card's full bandwidth."""
    return moved_bytes(tape, workspace_bytes) / card.bandwidth_bytes_per_second


def roofline(arithmetic: Float64, memory: Float64, rates: Rates, precision: str) -> Float64:
    """Return operators' times from their least times.

    Args:
        arithmetic: seconds at the full peak rate, float64 `[operators]`.
        memory: seconds at the full bandwidth, float64 `[operators]`.
        rates: what part of both is reached.
        precision: whose arithmetic it is.
    """
    longest: Float64 = np.maximum(
        arithmetic / rates.arithmetic_fraction(precision), memory / rates.bandwidth_fraction
    )
    return np.maximum(longest, rates.launch_seconds)


def operator_seconds(tape: Tape, card: Card, workspace_bytes: Int64) -> Float64:
    """Return each operator's time on a card, float64 `[operators]`.

    Args:
        tape: at the micro-batch size in question.
        card: its peak rates and what is reached of them.
        workspace_bytes: by index of the tape's convolutions.
    """
    return roofline(
        least_arithmetic_seconds(tape, card),
        least_memory_seconds(tape, card, workspace_bytes),
        card.rates,
        tape.description.spec.precision,
    )


def images_per_second(
    tape: Tape, card: Card, workspace_bytes: Int64, accumulation_steps: int
) -> float:
    """Return the training rate of one card.

    Args:
        tape: at the micro-batch size in question.
        card: its peak rates.
        workspace_bytes: by index of the tape's convolutions.
        accumulation_steps: micro-batches to an optimizer step, >= 1.
    """
    seconds = operator_seconds(tape, card, workspace_bytes)
    section = tape.operators.section

    def total(*names: str) -> float:
        wanted = [tapes.SECTIONS.index(name) for name in names]
        return float(seconds[np.isin(section, wanted)].sum())

    step = accumulation_steps * total("micro_batch") + total("update", "release", "average")
    return accumulation_steps * tape.description.micro_batch_size / step
