"""How much of a card a convolution fills: small ones leave multiprocessors idle.

A convolution runs as a matrix product whose result is cut into tiles, one to a thread block. A
card works on as many tiles at a time as it has multiprocessors, so the last wave of them, and
tiles that reach over the edge, are paid in full. The library takes the tile that is done first.
What layers of few channels waste of their tiles at any batch is not counted here: it is in the part
of the peak that convolutions reach.

Source: "Tile Quantization", "Wave Quantization" and the list of tile sizes in NVIDIA's Deep
Learning Performance guide, "Matrix Multiplication Background"; the products that a convolution is
(implicit GEMM) in its "Convolutional Layers", table of the three passes.

Limits: every tile is taken to be equally efficient and one block to fill a multiprocessor. A
weight gradient sums over batch and pixels, which libraries split among thread blocks until the
card is full, so it is taken to fill it. Matrix products outside convolutions are taken to as well.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from memplan.convolution import ConvolutionProblem
from memplan.tape import CONVOLUTION, Tape

# Rows and columns of a thread block's tile.
_TILES = (
    (256, 128),
    (128, 256),
    (128, 128),
    (256, 64),
    (64, 256),
    (128, 64),
    (64, 128),
    (64, 64),
)


@lru_cache(maxsize=1 << 16)
def _wasted(kind: str, rows: int, columns: int, groups: int, multiprocessors: int) -> float:
    """Return the time of a product over that of as wide a one with many rows, >= 1."""
    if kind == "weight_gradient" or not rows or not columns:
        return 1.0
    least = min(
        math.ceil(math.ceil(rows / tall) * math.ceil(columns / wide) * groups / multiprocessors)
        * tall
        * wide
        for tall, wide in _TILES
    )
    in_full_waves = min(math.ceil(columns / wide) * wide for _, wide in _TILES) * rows * groups
    return max(1.0, least * multiprocessors / in_full_waves)


def wasted(problem: ConvolutionProblem, multiprocessors: int) -> float:
    """Return a convolution's arithmetic time over that of its share of a huge batch, >= 1.

    Args:
        problem: one of its three passes.
        multiprocessors: of the card.
    """
    shape = problem.input if problem.kind == "input_gradient" else problem.output
    rows = math.prod((shape[0], *shape[2:]))
    columns = shape[1] // problem.groups
    return _wasted(problem.kind, rows, columns, problem.groups, multiprocessors)


def wasted_by_operator(tape: Tape, multiprocessors: int) -> npt.NDArray[np.float64]:
    """Return each operator's arithmetic time over that on a filled card, float64 `[operators]`.

    An operator with two passes, as a convolution's backward has, spends half of its arithmetic on
    each. Operators that are no convolution are taken to fill the card.
    """
    asks = np.flatnonzero(tape.events.asks == CONVOLUTION)
    of_problem = np.array([wasted(one, multiprocessors) for one in tape.convolutions] or [1.0])
    operator = tape.events.operator[asks]
    count = len(tape.operators.flops)
    total = np.bincount(operator, of_problem[tape.events.about[asks]], minlength=count)
    passes = np.bincount(operator, minlength=count)
    factors: npt.NDArray[np.float64] = np.where(passes > 0, total / np.maximum(passes, 1), 1.0)
    return factors
