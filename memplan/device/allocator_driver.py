"""The device memory that the driver hands to the simulated allocator."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.units import MIB

_FIRST_ADDRESS = 0x7F0000000000
_ADDRESS_QUANTUM = 2 * MIB


class Driver:
    """Gives memory while it lasts: a request succeeds exactly when it fits in what is free.

    Args:
        capacity_bytes: what the driver can still give this process.
        total_bytes: the device's memory as the driver reports it.
        addresses: where new segments and reservations start, in order; without it, or when it
            ends, addresses rise from a fixed one and are never used twice.

    Limits: physical fragmentation is not modelled; none was seen in recorded traces.
    """

    def __init__(
        self, capacity_bytes: int, total_bytes: int, addresses: Iterator[int] | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._addresses = addresses
        self._next_address = _FIRST_ADDRESS

    @property
    def free_bytes(self) -> int:
        """Bytes the driver can still give."""
        return self.capacity_bytes - self.used_bytes

    def take(self, num_bytes: int) -> bool:
        """Return whether the bytes were there, and count them as used if so."""
        if self.used_bytes + num_bytes > self.capacity_bytes:
            return False
        self.used_bytes += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """Count bytes as free again."""
        self.used_bytes -= num_bytes

    def new_address(self, num_bytes: int) -> int:
        """Return where a new range of `num_bytes` starts."""
        if self._addresses is not None:
            address = next(self._addresses, None)
            if address is not None:
                self.avoid(address + num_bytes)
                return address
        address = self._next_address
        self.avoid(address + num_bytes)
        return address

    def avoid(self, end: int) -> None:
        """Let later rising addresses start at `end` or behind it."""
        rounded = -(-end // _ADDRESS_QUANTUM) * _ADDRESS_QUANTUM
        self._next_address = max(self._next_address, rounded)
