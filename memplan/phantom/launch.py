"""The environment in which a child process finds a phantom card in place of a real one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from memplan.device.card import Card
from memplan.errors import BadInputError
from memplan.phantom.build import cache_folder, library_folder
from memplan.phantom.compile import preloaded
from memplan.phantom.description import describe
from memplan.phantom.installed import find_torch
from memplan.phantom.kernels import table


def environment(
    card: Card,
    *,
    capacity_bytes: int | None = None,
    other_bytes: int | None = None,
    num_devices: int = 1,
    base: Mapping[str, str] | None = None,
    interpreter: str | None = None,
    exact_occupancy: bool = False,
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
        interpreter: the Python that will run, which may have another torch; this one by default.
        exact_occupancy: whether kernels have their real registers, read from torch's library
            (some 5 s, once for an architecture), or 32: see docs/phantom.md for what it changes.

    Raises:
        BadInputError: the machine is not Linux, or the interpreter's torch has no CUDA or one
            that the phantom has no runtime for, or its cuDNN is too old, or the description is
            impossible.
        MemplanError: the libraries must be compiled here and cannot be, or `cuobjdump` is needed
            and missing.
    """
    if not sys.platform.startswith("linux"):
        raise BadInputError(
            f"A phantom card needs Linux, and this machine runs {sys.platform}. Run memplan there."
        )
    description = describe(
        card, capacity_bytes=capacity_bytes, other_bytes=other_bytes, num_devices=num_devices
    )
    torch = find_torch(interpreter)
    folder = library_folder(torch.cuda_major)
    made = dict(os.environ if base is None else base)
    _preload(made, folder, preloaded(torch.cuda_major))
    made["PHANTOM_DEVICE"] = description
    if exact_occupancy:
        made["PHANTOM_KERNELS"] = str(table(card, torch.folder, torch.cuda_major))
    # Kernels compiled for the phantom hold nothing, or were chosen by times that mean nothing: the
    # user's caches must not keep them.
    made["USE_PYTORCH_KERNEL_CACHE"] = "0"
    made["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "phantom-inductor")
    made["TRITON_CACHE_DIR"] = str(cache_folder() / "phantom-triton")
    # Triton links its launchers against a driver that it is told of.
    made["TRITON_LIBCUDA_PATH"] = str(folder / "opened")
    # The phantom's devices are counted from 0, whatever this machine's real ones are called.
    made.pop("CUDA_VISIBLE_DEVICES", None)
    return made


def _preload(made: dict[str, str], folder: Path, names: list[str]) -> None:
    """Put the libraries first among what is preloaded.

    LD_PRELOAD separates by spaces and colons, and quotes neither: below a folder with a space in
    its name the libraries are named alone, and the loader is told the folder, where a space may be.
    """
    if ":" in str(folder):
        raise BadInputError(
            f"Libraries cannot be preloaded from {folder}: the loader takes the colon for an end. "
            "Install memplan, or set XDG_CACHE_HOME, where paths have none."
        )
    ours = names if " " in str(folder) else [str(folder / name) for name in names]
    others = [one for one in made.get("LD_PRELOAD", "").replace(" ", ":").split(":") if one]
    made["LD_PRELOAD"] = ":".join([*ours, *(one for one in others if one not in ours)])
    if ours == names:
        searched = [one for one in made.get("LD_LIBRARY_PATH", "").split(":") if one]
        rest = [one for one in searched if one != str(folder)]
        made["LD_LIBRARY_PATH"] = ":".join([str(folder), *rest])
