"""The environment in which a child process finds a phantom card in place of a real one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from memplan.device.card import Card
from memplan.errors import BadInputError
from memplan.phantom.build import check_cudnn, cuda_major, library_folder
from memplan.phantom.compile import preloaded
from memplan.phantom.description import describe


def environment(
    card: Card,
    *,
    capacity_bytes: int | None = None,
    other_bytes: int | None = None,
    num_devices: int = 1,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment variables of a process that shall run on a phantom card.

    This process is not changed: only what is started with these variables, and what that starts
    in turn, meets the phantom. Every real card is hidden from them.

    Args:
        card: what the card is.
        capacity_bytes: bytes it is taken to have, > 0; the card's own by default.
        other_bytes: bytes taken outside the process's allocations, >= 0; the card's context by
            default.
        num_devices: how many such cards, 1 to 64.
        base: the variables to start from, this process's by default.

    Raises:
        BadInputError: the machine is not Linux, or the installed torch has no CUDA or one that
            the phantom has no runtime for, or cuDNN is too old, or the description is impossible.
        MemplanError: the libraries must be compiled here and cannot be.
    """
    if not sys.platform.startswith("linux"):
        raise BadInputError(
            f"A phantom card needs Linux, and this machine runs {sys.platform}. Run memplan there."
        )
    description = describe(
        card, capacity_bytes=capacity_bytes, other_bytes=other_bytes, num_devices=num_devices
    )
    major = cuda_major()
    check_cudnn(major)
    folder = library_folder()
    made = dict(os.environ if base is None else base)
    ours = [str(folder / name) for name in preloaded(major)]
    others = [one for one in made.get("LD_PRELOAD", "").replace(" ", ":").split(":") if one]
    made["LD_PRELOAD"] = ":".join([*ours, *(one for one in others if one not in ours)])
    made["PHANTOM_DEVICE"] = description
    # Kernels compiled for the phantom hold nothing; the user's cache must not keep them.
    made["USE_PYTORCH_KERNEL_CACHE"] = "0"
    # Triton links its launchers against a driver that it is told of.
    made["TRITON_LIBCUDA_PATH"] = str(folder / "opened")
    # The phantom's devices are counted from 0, whatever this machine's real ones are called.
    made.pop("CUDA_VISIBLE_DEVICES", None)
    return made
