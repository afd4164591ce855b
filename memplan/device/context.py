"""Device memory a training process holds outside the caching allocator.

It is the CUDA context, code and constants of the kernels loaded so far, library handles and the
local memory of the hungriest kernel; with several processes also NCCL's buffers. No official table
exists. Where a figure comes from, best first:

1. the user's own, or the card's calibration (`memplan gpus --calibrate`), measured with kernels
   loaded lazily;
2. the card's entry in the catalogue: the middle of what public out-of-memory texts leave over
   (process bytes - allocated - reserved but unallocated), or a line through the measured cards
   where there is no text; with an uncertainty, 0.15 GiB where measured.

What the catalogue's figure assumes: lazy loading of kernels (torch's default since 1.13), one
process on the card, no display. Eager loading (`CUDA_MODULE_LOADING=EAGER`) took 0.35 GiB more in
the one public pair of figures.

Limits: cuFFT plans, CUDA graphs, compiled (Triton) kernels and other frameworks in the same
process come on top and are not modelled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memplan.device import nccl
from memplan.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memplan.device.card import Card

# 666,632,192 bytes eager against 287,047,680 lazy. Source: pytorch pull request 86509.
EAGER_LOADING_BYTES = 666_632_192 - 287_047_680


@dataclass(frozen=True, slots=True)
class OutsideAllocator:
    """What a process holds outside the allocator: bytes, bytes either way, and where from."""

    num_bytes: int
    uncertainty_bytes: int
    source: str

    @property
    def high_bytes(self) -> int:
        """The figure to plan with when running out is the costly error."""
        return self.num_bytes + self.uncertainty_bytes


def outside_allocator(
    card: Card,
    *,
    devices: int = 1,
    given_bytes: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> OutsideAllocator:
    """Return the memory of one process outside the allocator, with its uncertainty and source.

    Args:
        card: the card; its context is the calibrated one if `Card.with_context` set it.
        devices: processes that train together, >= 1; above 1 NCCL's buffers come on top.
        given_bytes: the user's own figure, >= 0, NCCL included; overrides everything.
        environment: where `CUDA_MODULE_LOADING` is looked up.

    Raises:
        BadInputError: `devices` is below 1 or `given_bytes` below 0.
    """
    if devices < 1:
        raise BadInputError(f"devices {devices} is none. Give 1 or more.")
    if given_bytes is not None:
        if given_bytes < 0:
            raise BadInputError(f"A context of {given_bytes} bytes is none. Give 0 or more.")
        return OutsideAllocator(given_bytes, 0, "as given")
    num_bytes, uncertainty, source = card.context_bytes, card.context_uncertainty_bytes, card.source
    if environment.get("CUDA_MODULE_LOADING", "").upper() == "EAGER":
        num_bytes += EAGER_LOADING_BYTES
        uncertainty += EAGER_LOADING_BYTES // 2
        source += ", with eager loading"
    if devices > 1:
        num_bytes += nccl.communicator_bytes(card)
        uncertainty += nccl.UNCERTAINTY_BYTES
        source += ", with NCCL"
    return OutsideAllocator(num_bytes, uncertainty, source)


def outside_allocator_bytes(card: Card, *, devices: int = 1, given_bytes: int | None = None) -> int:
    """Return only the bytes of `outside_allocator`, the middle estimate."""
    return outside_allocator(card, devices=devices, given_bytes=given_bytes).num_bytes
