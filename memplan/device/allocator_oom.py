"""The sentence PyTorch prints when device memory runs out, release by release."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.units import GIB, KIB, MIB

LARGEST_REQUEST_BYTES = 1 << 60
"""Requests of this size and above are refused unseen. Source: `one_exa_bytes` of `malloc`."""

TOO_LARGE_TEXT = "CUDA out of memory. Tried to allocate more than 1EB memory."

_DOCS = "See documentation for Memory Management "


@dataclass(frozen=True, kw_only=True)
class OutOfMemoryFigures:
    """The figures of one failed request; all bytes."""

    segment_bytes: int
    """What the driver was last asked for."""
    total_bytes: int
    """The device's memory."""
    device_free_bytes: int
    """What the driver still had."""
    limit_bytes: int | None
    """The process' own limit (memory fraction), if one is set."""
    allocated_bytes: int
    reserved_bytes: int
    private_pool_free_bytes: int = 0
    """Cached blocks of private pools; PyTorch adds them to the allocated memory here."""
    device: int = 0


def pytorch_bytes(num_bytes: int) -> str:
    """Return bytes as PyTorch's messages write them, such as `1024.00 MiB` for 2^30.

    Source: `format_size` in `c10/cuda/CUDACachingAllocator.cpp`.
    """
    if num_bytes <= KIB:
        return f"{num_bytes} bytes"
    if num_bytes <= MIB:
        return f"{num_bytes / KIB:.2f} KiB"
    if num_bytes <= GIB:
        return f"{num_bytes / MIB:.2f} MiB"
    return f"{num_bytes / GIB:.2f} GiB"


def out_of_memory_text(figures: OutOfMemoryFigures, torch_version: tuple[int, int]) -> str:
    """Return what `torch.OutOfMemoryError` says, in the words of the release.

    Source: `malloc` in `c10/cuda/CUDACachingAllocator.cpp`.
    Limits: the lines about processes on the device come from NVML and are left out, as PyTorch
    does where NVML is missing.
    """
    if torch_version <= (2, 0):
        return _text_of_2_0(figures)
    capacity = "capacty" if torch_version == (2, 1) else "capacity"
    private = figures.private_pool_free_bytes
    allocated = figures.allocated_bytes + private
    private_part = ""
    if private and torch_version >= (2, 4):
        private_part = (
            f"with {pytorch_bytes(private)} allocated in private pools (e.g., CUDA Graphs), "
        )
    return (
        f"CUDA out of memory. Tried to allocate {pytorch_bytes(figures.segment_bytes)}. "
        f"GPU {figures.device} has a total {capacity} of {pytorch_bytes(figures.total_bytes)} "
        f"of which {pytorch_bytes(figures.device_free_bytes)} is free. "
        f"{_allowed(figures) if torch_version >= (2, 6) else ''}"
        f"Of the allocated memory {pytorch_bytes(allocated)} is allocated by PyTorch, "
        f"{private_part}and {pytorch_bytes(figures.reserved_bytes - allocated)} is reserved by "
        f"PyTorch but unallocated. If reserved but unallocated memory is large try setting "
        f"{_advice(torch_version)}"
    )


def _allowed(figures: OutOfMemoryFigures) -> str:
    if figures.limit_bytes is None:
        return ""
    return f"{pytorch_bytes(figures.limit_bytes)} allowed; "


def _advice(torch_version: tuple[int, int]) -> str:
    if torch_version == (2, 1):
        return (
            "max_split_size_mb to avoid fragmentation.  See documentation for Memory Management "
            "and PYTORCH_CUDA_ALLOC_CONF"
        )
    variable = "PYTORCH_ALLOC_CONF" if torch_version == (2, 10) else "PYTORCH_CUDA_ALLOC_CONF"
    page = "https://pytorch.org/docs/stable/notes/cuda.html#environment-variables"
    if torch_version >= (2, 11):
        page = (
            "https://docs.pytorch.org/docs/stable/notes/cuda.html"
            "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf"
        )
    return f"{variable}=expandable_segments:True to avoid fragmentation.  {_DOCS} ({page})"


def _text_of_2_0(figures: OutOfMemoryFigures) -> str:
    return (
        f"CUDA out of memory. Tried to allocate {pytorch_bytes(figures.segment_bytes)} "
        f"(GPU {figures.device}; {pytorch_bytes(figures.total_bytes)} total capacity; "
        f"{pytorch_bytes(figures.allocated_bytes)} already allocated; "
        f"{pytorch_bytes(figures.device_free_bytes)} free; {_allowed(figures)}"
        f"{pytorch_bytes(figures.reserved_bytes)} reserved in total by PyTorch) If reserved "
        "memory is >> allocated memory try setting max_split_size_mb to avoid fragmentation.  "
        "See documentation for Memory Management and PYTORCH_CUDA_ALLOC_CONF"
    )
