"""What host memory this process holds and this machine has left; work kept within a part of it."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from memplan.units import KIB

# What extra work may take of the memory that is left; other programs start meanwhile.
_SHARE = 0.8
_STATM = Path("/proc/self/statm")


def available_host_bytes() -> int:
    """Return the host memory that can be had without swapping, bytes.

    Source: `MemAvailable` of Linux's /proc/meminfo; elsewhere the free pages.
    """
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, value, *_ = line.split()
            if name == "MemAvailable:":
                return int(value) * KIB
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return what this process holds in host memory now, bytes. Linux only."""
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def resident_peak_bytes() -> int:
    """Return the most that this program ever held in host memory, bytes. Linux only.

    Source: `VmHWM` of /proc/self/status. What `getrusage` tells begins with the resident memory of
    the process that started this one, which a large parent makes far too much.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * KIB


def _address_space_bytes() -> int | None:
    """Return the address space that this process has taken; None where the system does not say."""
    if not _STATM.is_file():
        return None
    return int(_STATM.read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def within_host_memory(num_sharing: int) -> Iterator[None]:
    """Let a process take no more than its part of what is left: beyond it allocations fail.

    Without a bound the system would end some process instead, this one or another. Where the
    system does not tell a process's address space nothing is bounded.

    Args:
        num_sharing: processes that do such work at the same time, >= 1.
    """
    taken = _address_space_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if taken is None:
        yield
        return
    limit = taken + int(_SHARE * available_host_bytes()) // num_sharing
    bounds = [one for one in (limit, soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
