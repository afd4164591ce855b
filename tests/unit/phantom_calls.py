"""What the tests let a child process do on its phantom card."""

import ctypes
import os
import resource
import time

from memplan.errors import BadInputError


def card_and_peak(*, count):
    import torch

    tensor = torch.zeros(count, device="cuda")
    peak = torch.cuda.memory_stats()["allocated_bytes.all.peak"]
    return [torch.cuda.get_device_capability(), tensor.numel(), peak]


def mark(*, out):
    print("a word that is no answer")
    out.write_text(os.environ["MEMPLAN_MARK"])


def crash():
    ctypes.string_at(0)


def hang():
    time.sleep(3600)


def refuse(*, name):
    if name:
        raise BadInputError(f"No such thing as {name!r}.")
    raise ZeroDivisionError("division by zero")


def address_space_limit() -> int:
    """Return the bytes of address space that this process may take, -1 where there is no limit."""
    return resource.getrlimit(resource.RLIMIT_AS)[0]
