"""What reading the data takes of host memory, said before a run starts."""

from __future__ import annotations

from memplan.host_memory import available_host_bytes
from memplan.training.setup import Setup
from memplan.units import format_bytes
from memplan.workload import KnowsHostMemory

# What is kept was taken before the run is introduced, and is no longer free.
_TAKEN = "images kept"


def host_memory_words(setup: Setup) -> tuple[str, str]:
    """Return a line on the host memory that reading takes, and a warning where it is too little.

    Both are empty where the data do not say, or take nothing beside the training process. On
    several devices of a machine every rank has its own loaders.
    """
    data, size = setup.data, setup.ranks.size
    parts = data.host_bytes(setup.micro_batch_size) if isinstance(data, KnowsHostMemory) else {}
    if not parts:
        return "", ""
    named = ", ".join(f"{format_bytes(count)} {name}" for name, count in parts.items())
    each = "" if size == 1 else " on each device"
    free = available_host_bytes()
    line = (
        f"Host memory beside this process: {named}{each} (predicted); {format_bytes(free)} free "
        "(measured)"
    )
    needed = size * sum(count for name, count in parts.items() if name != _TAKEN)
    if needed <= free:
        return line, ""
    return line, (
        f"Loaders need about {format_bytes(needed)} of host memory (predicted), more than is free. "
        "Give fewer --workers, or --workers 0 to load without them."
    )
