"""The NVIDIA cards present in this machine, as the driver's management library (NVML) sees them.

Cards are counted as NVML counts them, by PCI bus, less those that `CUDA_VISIBLE_DEVICES` hides and
in its order. PyTorch counts the same way when `CUDA_DEVICE_ORDER=PCI_BUS_ID` is set or all cards
are of one kind; otherwise CUDA puts the fastest first.

Limits: a MIG slice is not told apart from its whole card.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memplan.device import catalogue
from memplan.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from memplan.device.card import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that holds memory of a card; `used_bytes` is None where the driver does not say."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentCard:
    """One card of this machine: what it is, and how its memory is used right now.

    `card` has the catalogue's figures with this card's own capacity. `used_bytes` is of all
    processes together; `free_bytes` is what the driver calls free.
    """

    index: int
    device_name: str
    uuid: str
    driver_version: str
    card: Card
    in_catalogue: bool
    capacity_bytes: int
    free_bytes: int
    used_bytes: int
    processes: tuple[Process, ...]


def present() -> tuple[PresentCard, ...]:
    """Return the cards PyTorch would see here; none without a driver, a library or a card."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return ()
    try:
        return _visible(tuple(_read_all(pynvml)), os.environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def card_at(index: int, option: str = "--gpu") -> PresentCard:
    """Return the present card of that index, counted from 0.

    Args:
        index: as CUDA counts.
        option: what the user gave it with.

    Raises:
        BadInputError: there is no such card, or none at all.
    """
    found = present()
    if 0 <= index < len(found):
        return found[index]
    if not found:
        raise BadInputError(
            f"No NVIDIA card is present, so {option} {index} names none. To plan for a card that "
            "is elsewhere use --gpu NAME, such as rtx-3090."
        )
    names = ", ".join(f"{one.index} ({one.device_name})" for one in found)
    raise BadInputError(f"{option} {index} names no card; present: {names}. Or use --gpu NAME.")


def _read_all(pynvml: Any) -> Iterator[PresentCard]:
    driver = _text(pynvml.nvmlSystemGetDriverVersion())
    for index in range(pynvml.nvmlDeviceGetCount()):
        # A card that fell off the bus must not hide the others.
        with contextlib.suppress(pynvml.NVMLError):
            yield _read(pynvml, index, driver)


def _read(pynvml: Any, index: int, driver: str) -> PresentCard:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    device_name = _text(pynvml.nvmlDeviceGetName(handle))
    # Version 2 tells the driver's own part apart, which torch's total_memory does not contain.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    capacity_bytes = memory.total - memory.reserved
    capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    card, in_catalogue = identify(device_name, capacity_bytes, capability)
    return PresentCard(
        index=index,
        device_name=device_name,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        driver_version=driver,
        card=card,
        in_catalogue=in_catalogue,
        capacity_bytes=capacity_bytes,
        free_bytes=memory.free,
        used_bytes=memory.used,
        processes=_processes(pynvml, handle),
    )


def identify(
    device_name: str, capacity_bytes: int, capability: tuple[int, ...]
) -> tuple[Card, bool]:
    """Return the card a device is, with its own capacity, and whether the catalogue has it.

    A device the catalogue lacks gets the figures of the nearest card: the same compute capability
    (else the nearest one below), then the nearest capacity; the card's `source` says so.

    Args:
        device_name: as the driver says it, such as "NVIDIA GeForce RTX 3090".
        capacity_bytes: what torch would report as total memory.
        capability: the compute capability, (major, minor).
    """

    def distance(card: Card) -> int:
        return abs(card.capacity_bytes - capacity_bytes)

    every = catalogue.cards()
    wanted = device_name.lower()
    known = [card for card in every if wanted in {name.lower() for name in card.device_names}]
    if known:
        card = min(known, key=distance)
        source = "capacity from NVML, context from the catalogue"
        return replace(card, capacity_bytes=capacity_bytes, source=source), True
    below = {card.compute_capability for card in every if card.compute_capability <= capability}
    nearest_capability = max(below, default=min(card.compute_capability for card in every))
    twins = [card for card in every if card.compute_capability == nearest_capability]
    twin = min(twins, key=distance)
    return replace(
        twin,
        name=_slug(device_name),
        title=device_name,
        device_names=(device_name,),
        capacity_bytes=capacity_bytes,
        source=f"capacity from NVML, not in the catalogue: all else is {twin.name}'s",
    ), False


def _processes(pynvml: Any, handle: Any) -> tuple[Process, ...]:
    """The processes computing on a card; none where the driver refuses to list them."""
    try:
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return ()
    return tuple(Process(pid=one.pid, used_bytes=one.usedGpuMemory) for one in running)


def _visible(found: Sequence[PresentCard], variable: str | None) -> tuple[PresentCard, ...]:
    """Choose and order cards as CUDA does: up to the first entry that names none.

    Source: CUDA C++ Programming Guide, "CUDA Environment Variables", CUDA_VISIBLE_DEVICES.
    """
    if variable is None:
        return tuple(found)
    chosen: list[PresentCard] = []
    for entry in variable.split(","):
        match = [one for one in found if _names(entry.strip(), one)]
        if len(match) != 1:
            break
        chosen.append(replace(match[0], index=len(chosen)))
    return tuple(chosen)


def _names(entry: str, one: PresentCard) -> bool:
    if entry.isdecimal():
        return int(entry) == one.index
    return entry.startswith("GPU-") and one.uuid.startswith(entry)


def _slug(device_name: str) -> str:
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    return "-".join(word for word in words if word not in {"nvidia", "geforce", "tesla"})


def _text(value: str | bytes) -> str:
    """NVML bindings before 11.5 return bytes."""
    return value.decode() if isinstance(value, bytes) else value
