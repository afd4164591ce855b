"""A card of the catalogue in the words that the phantom runtime reads."""

from __future__ import annotations

from memplan.device.card import Card
from memplan.device.nccl import communicator_bytes
from memplan.errors import UsageError
from memplan.units import format_bytes

MAX_DEVICES = 64


def describe(
    card: Card,
    *,
    capacity_bytes: int | None = None,
    other_bytes: int | None = None,
    num_devices: int = 1,
) -> str:
    """Return the text of the environment variable PHANTOM_DEVICE: `key=value` joined by `;`.

    Args:
        card: what the card is.
        capacity_bytes: bytes it is taken to have, > 0; the card's own by default.
        other_bytes: bytes of it that are taken outside this process's allocations, >= 0: context,
            other processes. The card's context by default.
        num_devices: how many such cards there are, 1 to 64.

    Raises:
        UsageError: the capacity leaves nothing, or there are no or too many devices.
    """
    capacity_bytes = card.capacity_bytes if capacity_bytes is None else capacity_bytes
    other_bytes = card.context_bytes if other_bytes is None else other_bytes
    if not 0 <= other_bytes < capacity_bytes:
        raise UsageError(
            f"A capacity of {format_bytes(capacity_bytes)}, of which {format_bytes(other_bytes)} "
            "are the CUDA context's and other processes', leaves nothing to train in. Give "
            "--capacity more, such as 8GiB."
        )
    if not 1 <= num_devices <= MAX_DEVICES:
        raise UsageError(f"{num_devices} devices cannot be described: give 1 to {MAX_DEVICES}.")
    return ";".join(
        f"{key}={value}" for key, value in _facts(card, capacity_bytes, other_bytes, num_devices)
    )


def _facts(
    card: Card, capacity_bytes: int, other_bytes: int, num_devices: int
) -> list[tuple[str, object]]:
    limits = card.architecture
    major, minor = limits.compute_capability
    return [
        ("name", card.device_names[0] if card.device_names else card.title),
        ("total", capacity_bytes),
        ("other", other_bytes),
        ("devices", num_devices),
        ("major", major),
        ("minor", minor),
        ("sms", card.multiprocessors),
        ("threads_per_sm", limits.max_threads_per_multiprocessor),
        ("blocks_per_sm", limits.max_blocks_per_multiprocessor),
        ("smem_per_sm", limits.shared_memory_per_multiprocessor_bytes),
        ("smem_per_block", limits.shared_memory_per_block_bytes),
        ("smem_optin", limits.shared_memory_per_block_optin_bytes),
        ("smem_reserved", limits.reserved_shared_memory_per_block_bytes),
        ("regs_per_sm", limits.registers_per_multiprocessor),
        ("l2", card.l2_bytes),
        ("clock_khz", card.boost_clock_mhz * 1000),
        ("mem_clock_khz", card.memory_clock_mhz * 1000),
        ("bus_width", _bus_width(card)),
        ("nccl_bytes", communicator_bytes(card)),
    ]


def _bus_width(card: Card) -> int:
    """Return the bits of the memory bus: two transfers a clock make the card's bandwidth."""
    bits = card.bandwidth_bytes_per_second * 8 / (2e6 * card.memory_clock_mhz)
    return round(bits / 64) * 64
