"""A reduction as its kernel is launched.

A reduction whose outputs are too few for a card's multiprocessors is split over several thread
blocks, which hand their partial results on in a buffer. How many blocks there are is the card's to
say, so a tape keeps the reduction itself.

Source: aten/src/ATen/native/cuda/Reduce.cuh (`setReduceConfig`, `gpu_reduce_kernel`), PyTorch 2.11.

Limits: a reduction of more than 2^31 elements is not split in two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from memplan.launches.launch import Launch, Processors, ceil_div

_WARP = 32
_MAX_THREADS = 512
_VECTOR = 4
_MIN_VALUES, _MAX_VALUES = 16, 256


class Reduction(Launch, frozen=True, kw_only=True, tag="reduction"):
    """The dimensions a kernel walks, innermost first and merged where they lie end to end."""

    BUFFERS: ClassVar = ("reduction_results", "reduction_semaphores")
    VARYING: ClassVar = ("sizes", "strides", "offset")

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    """Of the input, in elements."""
    reduced: tuple[bool, ...]
    """Which dimensions are reduced; those come first."""
    offset: int
    """Of the input in its storage, in elements."""
    element_bytes: int
    """Of one partial result."""

    def __post_init__(self) -> None:
        if not len(self.sizes) == len(self.strides) == len(self.reduced):
            raise ValueError("a reduction has sizes, strides and reduced of several lengths")

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of the partial results and of the semaphores; 0 if it is not split."""
        outputs = math.prod(
            size for size, reduced in zip(self.sizes, self.reduced, strict=True) if not reduced
        )
        inputs = math.prod(self.sizes) // max(outputs, 1)
        if not outputs * inputs:
            return 0, 0
        launch = _launch(self, outputs, inputs)
        grid = ceil_div(outputs // launch.output_vector, launch.outputs_a_block)
        target = card.resident_blocks(launch.width * launch.height)
        blocks = _blocks_an_output(launch, inputs, grid, target)
        if blocks == 1:
            return 0, 0
        lanes = 1 if launch.reduces_lanes else launch.width * launch.output_vector
        return self.element_bytes * outputs * blocks * lanes, 4 * grid


def _last_power_of_two(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


@dataclass
class _Launch:
    """How threads share a reduction."""

    width: int
    height: int
    step: int
    outputs_a_block: int
    output_vector: int
    reduces_lanes: bool
    splits_warps: bool


def _launch(axes: Reduction, outputs: int, inputs: int) -> _Launch:
    """Return how many threads share an output, and how many outputs a block works on."""
    num_reduced = sum(axes.reduced)
    along = not axes.sizes or num_reduced == len(axes.sizes)
    along = along or axes.strides[0] < axes.strides[num_reduced]
    first, second = (inputs, outputs) if along else (outputs, inputs)
    vector = 1
    if axes.sizes:
        fastest = axes.strides[0] if along else axes.strides[num_reduced]
        if fastest == 1 and along and first >= 128 and num_reduced == 1:
            first //= _VECTOR
        elif fastest == 1 and not along:
            vector = _output_vector(axes, num_reduced)
            first //= vector
    most = _MAX_THREADS // vector
    wide = _last_power_of_two(first) if first < most else most
    high = _last_power_of_two(second) if second < most else most
    width = min(wide, _WARP)
    height = min(high, most // width)
    width = min(wide, most // height)
    step = width if along else 1
    splits = ceil_div(inputs, step) >= min(height * 16, _MAX_VALUES)
    return _Launch(
        width=width,
        height=height,
        step=step * (height if splits else 1),
        outputs_a_block=(1 if along else width) * (1 if splits else height),
        output_vector=vector,
        reduces_lanes=along,
        splits_warps=splits,
    )


def _output_vector(axes: Reduction, output_index: int) -> int:
    numbers = [axes.offset, axes.sizes[output_index]]
    numbers += [stride for i, stride in enumerate(axes.strides) if i != output_index]
    vector = 4
    while any(number % vector for number in numbers):
        vector //= 2
    return vector


def _blocks_an_output(launch: _Launch, inputs: int, grid: int, target: int) -> int:
    """Return how many thread blocks share one output; more than 1 needs a buffer."""
    values = ceil_div(inputs, launch.step)
    if not launch.splits_warps or values < _MAX_VALUES or grid > target:
        return 1
    enough = min(ceil_div(target, grid), ceil_div(values, _MIN_VALUES))
    return max(enough, ceil_div(values, _MAX_VALUES))
