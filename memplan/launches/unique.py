"""Choosing unique elements among sorted ones, and numbering them.

Source: `unique_cuda_template` in aten/src/ATen/native/cuda/UniqueCub.cu, PyTorch 2.11; CUB 3.0's
`DeviceSelect::Unique` and `DeviceScan::InclusiveSum`. Tiles as PyTorch's own host code asks for
scratch on phantom cards of all architectures, with up to 3,000,000 elements.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import Launch, Processors, look_back_bytes, together

_GENERAL = {1: 2560, 2: 2560, 4: 2560, 8: 1280}
# Items a tile of choosing, by their bytes, and of numbering: from which compute capability on.
_CHOOSING_TILES = {
    (10, 0): {1: 16384, 2: 2560, 4: 11520, 8: 8448},
    (9, 0): {1: 11520, 2: 2560, 4: 12800, 8: 8448},
    (8, 6): _GENERAL,
    (8, 0): {1: 40960, 2: 2560, 4: 8960, 8: 3840},
    (0, 0): _GENERAL,
}
_NUMBERING_TILES = {(9, 0): 6144, (8, 6): 3840, (8, 0): 7680, (0, 0): 3840}


class Unique(Launch, frozen=True, kw_only=True, tag="unique"):
    """Sorted elements of which those that differ from the one before are chosen."""

    BUFFERS: ClassVar = ("unique_choice",)
    VARYING: ClassVar = ("elements",)

    elements: int
    element_bytes: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes that tiles look back at."""
        tile = card.since(_CHOOSING_TILES)[self.element_bytes]
        return (together(look_back_bytes(self.elements, tile)),)


class Numbering(Launch, frozen=True, kw_only=True, tag="numbering"):
    """Sorted elements that get the number of the unique one that they are."""

    BUFFERS: ClassVar = ("numbering",)
    VARYING: ClassVar = ("elements",)

    elements: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes that tiles look back at."""
        return (together(look_back_bytes(self.elements, card.since(_NUMBERING_TILES))),)
