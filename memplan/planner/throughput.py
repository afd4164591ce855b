"""How long a step takes: a roofline over the tape's operators.

Each operator takes the longer of its arithmetic at the precision's peak rate and its bytes at the
memory's rate, and never less than a launch. Convolution workspace is the copies of a layout
change, so its bytes are moved once more in each direction. Small batches under-fill a card, which
shows as operators that cost their launch and no less.

Limits: uncalibrated. Real kernels reach a part of the peak, taken here as one number for all; the
ranking of settings is what this is for, and absolute times are off by tens of percent until a
card has been measured. Input pipeline and host are assumed to keep up.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.device.card import Card, Precision
from memplan.tape import Int64, Tape

# A kernel launch from eager PyTorch: the host's dispatch of about 5 us is not hidden when
# operators are that short. Source: PyTorch's own launch-overhead measurements, 4 to 10 us an
# operator on server processors.
LAUNCH_SECONDS = 5e-6
# Parts of the peak rates that large convolutions and elementwise kernels reach in practice.
# Source: cuDNN half-precision convolutions reach 40 to 60 % of the dense tensor peak at these
# sizes, device-to-device copies about 85 % of the bandwidth (vendor and public benchmarks).
ARITHMETIC_FRACTION = 0.5
BANDWIDTH_FRACTION = 0.85


def operator_seconds(tape: Tape, card: Card, workspace_bytes: Int64) -> npt.NDArray[np.float64]:
    """Return each operator's time on a card, float64 `[operators]`.

    Args:
        tape: at the micro-batch size in question.
        card: its peak rates.
        workspace_bytes: by index of the tape's convolutions.
    """
    operators = tape.operators
    moved = operators.moved_bytes.astype(np.float64)
    asks = tape.events.request >= 0
    np.add.at(
        moved,
        tape.events.operator[asks],
        2.0 * workspace_bytes[tape.events.request[asks]],
    )
    arithmetic = operators.flops / (
        ARITHMETIC_FRACTION * card.peak_flops(cast("Precision", tape.description.precision))
    )
    memory = moved / (BANDWIDTH_FRACTION * card.bandwidth_bytes_per_second)
    longest: npt.NDArray[np.float64] = np.maximum(arithmetic, memory)
    return np.maximum(longest, LAUNCH_SECONDS)


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
