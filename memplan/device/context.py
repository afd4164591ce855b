"""Device memory a training process holds outside the caching allocator.

It is the CUDA context, code and constants of the kernels loaded so far, library handles and the
local memory of the kernel that needs most; with several processes also NCCL's buffers. No official
table exists. Where a figure comes from, best first:

1. the user's own, or the card's calibration (`memplan gpus --calibrate`), measured with kernels
   loaded lazily;
2. the card's entry in the catalogue: the middle of what public out-of-memory texts leave over
   (process bytes - allocated - reserved but unallocated), or a line through the measured cards
   where there is no text; with an uncertainty, 0.15 GiB where measured.

What the catalogue's figure assumes: lazy loading of kernels (torch's default since 1.13, its first
release for CUDA 11.7), one process on the card, no display. Under older CUDA all kernels are loaded
at the start; `under_cuda` then takes a figure of its own from `contexts.yaml`, which also tells
what eager loading adds where `CUDA_MODULE_LOADING=EAGER` asks for it since.

Limits: cuFFT plans, CUDA graphs, compiled (Triton) kernels and other frameworks in the same
process come on top and are not modelled.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from memplan.device import catalogue, nccl
from memplan.errors import BadInputError, UsageError
from memplan.units import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memplan.device.card import Card

SCHEMA = "memplan.contexts/1"
# How much less is known where a figure is another card's of the same architecture: the spread of
# the lazy figures over the multiprocessors of one architecture, see gpus.yaml.
_BORROWED_BYTES = round(0.15 * GIB)


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
    if environment.get("CUDA_MODULE_LOADING", "").upper() == "EAGER" and not card.loads_eagerly:
        added = eager_adds_bytes(card)
        num_bytes += added
        uncertainty += added // 2
        source += ", with eager loading"
    if devices > 1:
        num_bytes += nccl.communicator_bytes(card)
        uncertainty += nccl.UNCERTAINTY_BYTES
        source += ", with NCCL"
    return OutsideAllocator(num_bytes, uncertainty, source)


def outside_allocator_bytes(card: Card, *, devices: int = 1, given_bytes: int | None = None) -> int:
    """Return only the bytes of `outside_allocator`, the middle estimate."""
    return outside_allocator(card, devices=devices, given_bytes=given_bytes).num_bytes


@functools.cache
def document() -> dict[str, Any]:
    """Return `contexts.yaml` as read, with sources and units as its head explains."""
    text = resources.files("memplan.device").joinpath("contexts.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    assert data["schema"] == SCHEMA
    return data


def eager_adds_bytes(card: Card) -> int:
    """Return what loading all kernels at the start adds since CUDA 11.7, bytes."""
    table = document()["eager_adds"]
    same = [
        entry
        for name, entry in table.items()
        if name != "any" and catalogue.card(name).compute_capability == card.compute_capability
    ]
    gib: float = (same[0] if same else table["any"])["gib"]
    return round(gib * GIB)


def under_cuda(card: Card, cuda_version: str) -> Card:
    """Return the card with the context that a process holds under a version of CUDA.

    Since 11.7 that is the context it has; before, kernels were loaded eagerly.

    Args:
        card: the card, with its calibration where there is one.
        cuda_version: such as "11.3"; the toolkit's that torch was built with.

    Raises:
        BadInputError: no such version runs on the card, or no public figure is known.
        UsageError: the text is no version.
    """
    release = _release(cuda_version)
    _check_runs(card, cuda_version, release)
    if release >= _release(document()["lazy_since"]):
        return card
    name, entry = _eager_entry(card, cuda_version)
    uncertainty = round(entry["uncertainty_gib"] * GIB)
    whose = ""
    if name not in {card.name, *_twins(card)}:
        uncertainty += _BORROWED_BYTES
        whose = f"of the {catalogue.card(name).title}, the nearest measured, "
    source = f"{whose}under CUDA {cuda_version}, all kernels loaded at the start"
    eager = card.with_context(
        round(entry["gib"] * GIB), uncertainty, f"{source} ({entry['sources']})"
    )
    return replace(eager, loads_eagerly=True)


def older_than_cudnn_9(cuda_version: str) -> bool:
    """Return whether no cuDNN 9 runs under a version of CUDA.

    Source: cuDNN 9 support matrix, which begins at CUDA 11.8.

    Raises:
        UsageError: the text is no version.
    """
    return _release(cuda_version) < (11, 8)


def _release(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})(?:\.\d+)?", text, re.ASCII)
    if match is None:
        raise UsageError(f"--cuda {text!r} is no version of CUDA. Write it as 11.3 or 12.8.")
    return int(match[1]), int(match[2])


def _check_runs(card: Card, cuda_version: str, release: tuple[int, int]) -> None:
    """Refuse a version that has no kernels for the card."""
    capability = "{}.{}".format(*card.compute_capability)
    known = document()["releases"].get(capability, {})
    first, last = known.get("first"), known.get("last")
    if (first and release < _release(first)) or (last and release > _release(last)):
        range_text = f"{first} to {last}" if last else f"{first} or newer"
        raise BadInputError(
            f"CUDA {cuda_version} has no kernels for the {card.title} (compute capability "
            f"{capability}). Give --cuda {range_text}, or leave it out."
        )


def _twins(card: Card) -> set[str]:
    """Return cards that differ from this one in their memory only."""
    return {
        one.name
        for one in catalogue.cards()
        if one.compute_capability == card.compute_capability
        and one.multiprocessors == card.multiprocessors
    }


def _eager_entry(card: Card, cuda_version: str) -> tuple[str, dict[str, Any]]:
    """Return the nearest measured card with its figure, first those that run the same kernels."""
    table = document()["eager"]
    twins = [name for name in table if name in {card.name, *_twins(card)}]
    major, minor = card.compute_capability

    def distance(name: str) -> tuple[int, int]:
        other = catalogue.card(name)
        return (
            abs(other.compute_capability[1] - minor),
            abs(other.multiprocessors - card.multiprocessors),
        )

    alike = [name for name in table if catalogue.card(name).compute_capability[0] == major]
    found = twins or sorted(alike, key=distance)
    if not found:
        raise BadInputError(
            f"No public figure of a context under CUDA {cuda_version} is known for the "
            f"{card.title}. Leave --cuda out."
        )
    return found[0], table[found[0]]
