"""How large the workspace is that PyTorch gives each cuBLAS handle, out of the caching allocator.

PyTorch keeps one workspace for each pair of cuBLAS handle and stream until
`torch._C._cuda_clearCublasWorkspaces()`. Handles are per host thread, so a training process holds
two: one of the thread that runs forward, one of autograd's. Each appears at its thread's first
matrix product and counts as allocated.

cuBLASLt (`addmm` with a bias, `scaled_mm`) has a workspace of its own up to PyTorch 2.11; from
2.12 it shares cuBLAS's. From 2.15 nothing is kept: the workspace comes and goes with the call.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp; sizes and releases read from the machine code of
the release libraries 2.10 to 2.15, older ones from source.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memplan.errors import BadInputError
from memplan.units import KIB

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
LT_ENVIRONMENT_VARIABLE = "CUBLASLT_WORKSPACE_SIZE"
# :4096:2:16:8, cuBLAS's own default before Hopper.
ORDINARY_BYTES = (4096 * 2 + 16 * 8) * KIB
LARGE_BYTES = 4096 * 8 * KIB
LT_BYTES = 1024 * KIB
_PAIRS = re.compile(r"(?::\d+:\d+)+")


@dataclass(frozen=True, slots=True)
class CublasWorkspaces:
    """What cuBLAS takes from the caching allocator.

    `cublas_bytes` is for each handle and stream, `lt_bytes` is cuBLASLt's own (0 when it shares
    cuBLAS's). `kept` says whether they stay allocated after the call that first needed them.
    """

    cublas_bytes: int
    lt_bytes: int
    kept: bool


def workspaces(
    compute_capability: tuple[int, int],
    torch_version: str,
    environment: Mapping[str, str] = os.environ,
) -> CublasWorkspaces:
    """Return the workspaces of a release of PyTorch on a card.

    Args:
        compute_capability: the card's, such as (9, 0).
        torch_version: such as "2.11.0+cu130"; 2.0 or newer.
        environment: where the variables that override the defaults are looked up.

    Raises:
        BadInputError: a variable or the version is not of its form.
    """
    release = release_of(torch_version)
    config = environment.get(ENVIRONMENT_VARIABLE)
    size = default_bytes(compute_capability, release) if not config else configured_bytes(config)
    cache = environment.get("TORCH_CUBLAS_WORKSPACE_CACHE", "1" if release < (2, 15) else "0")
    return CublasWorkspaces(
        cublas_bytes=size,
        lt_bytes=_lt_bytes(release, environment),
        kept=release < (2, 15) or cache == "1",
    )


def default_bytes(compute_capability: tuple[int, int], release: tuple[int, int]) -> int:
    """Return the bytes of one cuBLAS workspace when no variable says otherwise.

    Args:
        compute_capability: the card's, such as (9, 0).
        release: PyTorch's, such as (2, 11).
    """
    large = {9}
    if release >= (2, 12):
        large |= {10, 12}
    if release >= (2, 14):
        large.add(11)
    return LARGE_BYTES if compute_capability[0] in large else ORDINARY_BYTES


def configured_bytes(config: str) -> int:
    """Return the bytes `CUBLAS_WORKSPACE_CONFIG` asks for: the sum over its `:KiB:count` pairs.

    `:0:0` is no workspace.

    Raises:
        BadInputError: the text is not of that form.
    """
    if not _PAIRS.fullmatch(config):
        raise BadInputError(
            f"{ENVIRONMENT_VARIABLE}={config!r} is not a list of :KiB:count pairs. "
            "Write :4096:8 or :16:8, or unset it."
        )
    numbers = [int(number) for number in config[1:].split(":")]
    return sum(size * count * KIB for size, count in zip(numbers[::2], numbers[1::2], strict=True))


def _lt_bytes(release: tuple[int, int], environment: Mapping[str, str]) -> int:
    """Return the bytes of cuBLASLt's own workspace; 0 where it shares cuBLAS's."""
    by_default = "1" if (2, 12) <= release < (2, 15) else "0"
    if environment.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE", by_default) == "1":
        return 0
    text = environment.get(LT_ENVIRONMENT_VARIABLE)
    if text is None:
        return LT_BYTES
    if not text.isdecimal():
        raise BadInputError(
            f"{LT_ENVIRONMENT_VARIABLE}={text!r} is not a number of KiB. Write 1024, or unset it."
        )
    return int(text) * KIB


RULES_RELEASE = (2, 11)
"""Of the PyTorch whose sources the operators' rules, in `memplan.trace`, were read from."""


def release_of(version: str) -> tuple[int, int]:
    """Return the release of a PyTorch version, such as (2, 11) of "2.11.0+cu130".

    Raises:
        BadInputError: the text does not begin with a release.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise BadInputError(f"{version!r} is not a version of PyTorch, such as 2.11.0.")
    return int(match[1]), int(match[2])
