"""Choosing unique elements among sorted ones, and numbering them.

Source: `unique_cuda_template` in aten/src/ATen/native/cuda/UniqueCub.cu, PyTorch 2.11; CUB 3.0's
`DeviceSelect::Unique` and `DeviceScan::InclusiveSum`. Tiles as PyTorch's own host code asks for
scratch on phantom cards of all architectures, with up to 3,000,000 elements.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import Launch, Processors, ceil_div, together

_TILES_AHEAD = 32
_STATE_BYTES = 16
_GENERAL = {1: 2560, 2: 2560, 4: 2560, 8: 1280}
# Items a tile of choosing, by their bytes, and of numbering: from which compute capability on.
_TILES = (
    ((10, 0), {1: 16384, 2: 2560, 4: 11520, 8: 8448}, 6144),
    ((9, 0), {1: 11520, 2: 2560, 4: 12800, 8: 8448}, 6144),
    ((8, 6), _GENERAL, 3840),
    ((8, 0), {1: 40960, 2: 2560, 4: 8960, 8: 3840}, 7680),
    ((0, 0), _GENERAL, 3840),
)


def _tiles(card: Processors) -> tuple[dict[int, int], int]:
    return next(
        (choosing, numbering)
        for since, choosing, numbering in _TILES
        if card.compute_capability >= since
    )


def _states(elements: int, tile: int) -> int:
    return together(_STATE_BYTES * (ceil_div(elements, tile) + _TILES_AHEAD))


class Unique(Launch, frozen=True, kw_only=True, tag="unique"):
    """Sorted elements of which those that differ from the one before are chosen."""

    BUFFERS: ClassVar = ("unique_choice",)
    VARYING: ClassVar = ("elements",)

    elements: int
    element_bytes: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes that tiles look back at."""
        return (_states(self.elements, _tiles(card)[0][self.element_bytes]),)


class Numbering(Launch, frozen=True, kw_only=True, tag="numbering"):
    """Sorted elements that get the number of the unique one that they are."""

    BUFFERS: ClassVar = ("numbering",)
    VARYING: ClassVar = ("elements",)

    elements: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes that tiles look back at."""
        return (_states(self.elements, _tiles(card)[1]),)
