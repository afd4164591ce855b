"""cuDNN's batch norm of channels-last tensors, whose blocks sum many pixels each."""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import Launch, Processors, ceil_div


class BatchNormSums(Launch, frozen=True, kw_only=True, tag="batch_norm"):
    """Sums of each channel over blocks of pixels, added up once more in forward.

    This law meets to the byte the three sizes known of cuDNN 9.19 on an A100, for
    16 x 64 x 160 x 160: 1,322,036 forward in half, 3,303,476 in float32, 2,185,764 backward.

    Limits: an estimate. Whether other channels and cards change the pixels a block is not known.
    """

    BUFFERS: ClassVar = ("batch_norm_sums",)
    VARYING: ClassVar = ("pixels", "channels")

    pixels: int
    """Of all images together."""
    channels: int
    pixels_per_block: int
    sums_per_block: int
    """Sums of a channel that are added up at once; 0 where they are not."""
    tail_bytes: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of two float32 sums of each channel for every block, and two more."""
        del card
        sums = ceil_div(self.pixels, self.pixels_per_block)
        again = ceil_div(sums, self.sums_per_block) if self.sums_per_block else 0
        return (8 * self.channels * (sums + again + 2) + self.tail_bytes,)
