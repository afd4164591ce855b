"""A GPU as memplan sees it: how much memory, how fast, and what cuDNN needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from memplan.errors import BadInputError

Precision = Literal["amp-fp16", "amp-bf16", "fp32", "float16", "bfloat16", "float32", "tf32"]

# driverVer of the description; cuDNN's answers do not depend on it (tried: 12080 and 13000 agree).
CUDA_DRIVER_VERSION = 13000


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The limits every card of one compute capability has.

    Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    """

    compute_capability: tuple[int, int]
    max_threads_per_multiprocessor: int
    max_blocks_per_multiprocessor: int
    shared_memory_per_multiprocessor_bytes: int
    shared_memory_per_block_bytes: int
    shared_memory_per_block_optin_bytes: int
    reserved_shared_memory_per_block_bytes: int
    registers_per_multiprocessor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What training reaches of a card's peak rates, and what an operator costs at least.

    The defaults hold for a card that was never measured. Source: cuDNN half-precision
    convolutions reach 40 to 60 % of the dense tensor peak at these sizes, device-to-device copies
    about 85 % of the bandwidth (vendor and public benchmarks); eager PyTorch takes 4 to 10 us an
    operator on server processors (its own launch-overhead measurements), which is not hidden when
    operators are that short.
    """

    fp16_fraction: float = 0.5
    bf16_fraction: float = 0.5
    fp32_fraction: float = 0.5
    """Of the float32 peak, and of TF32's where convolutions may use it."""
    bandwidth_fraction: float = 0.85
    launch_seconds: float = 5e-6
    is_measured: bool = False
    """Whether they come from a calibration of the card."""

    def arithmetic_fraction(self, precision: str) -> float:
        """Return the part of `Card.peak_flops(precision)` that convolutions and products reach."""
        by_kind = {"16": self.fp16_fraction, "bf16": self.bf16_fraction}
        kind = {"amp-fp16": "16", "float16": "16", "amp-bf16": "bf16", "bfloat16": "bf16"}
        return by_kind.get(kind.get(precision, ""), self.fp32_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One kind of GPU, or one present GPU, with all that prediction needs.

    `capacity_bytes` is what torch reports as total memory, `context_bytes` what a process holds
    outside the caching allocator. Rates are dense operations a second, tensor rates with float32
    accumulation; a rate of 0 means the precision has no tensor path; `rates` says what training
    reaches of them. `source` says where the capacity and context come from, for the user to read.
    """

    name: str
    title: str
    device_names: tuple[str, ...]
    capacity_bytes: int
    context_bytes: int
    context_uncertainty_bytes: int
    multiprocessors: int
    architecture: Architecture
    bandwidth_bytes_per_second: float
    fp32_flops: float
    tf32_flops: float
    fp16_flops: float
    bf16_flops: float
    boost_clock_mhz: int
    memory_clock_mhz: int
    l2_bytes: int
    pcie_generation: int
    pcie_lanes: int
    tdp_watts: int
    source: str
    rates: Rates = Rates()
    loads_eagerly: bool = False
    """Whether `context_bytes` has all kernels loaded at the start, as under CUDA before 11.7."""

    @property
    def compute_capability(self) -> tuple[int, int]:
        """The compute capability as (major, minor)."""
        return self.architecture.compute_capability

    @property
    def supports_bfloat16(self) -> bool:
        """Whether PyTorch's cuDNN convolutions take bfloat16 here: compute capability 8.0 and up.

        Source: `supportsBFloat16ConvolutionWithCuDNNv8` in aten/src/ATen/cuda/detail/CUDAHooks.cpp.
        """
        return self.compute_capability >= (8, 0)

    def with_capacity(self, capacity_bytes: int) -> Card:
        """Return the same card with another capacity, as `--capacity` asks.

        Args:
            capacity_bytes: bytes the device is taken to have, > 0.

        Raises:
            BadInputError: the capacity is not above what the context alone takes.
        """
        if capacity_bytes <= self.context_bytes:
            raise BadInputError(
                f"A capacity of {capacity_bytes} bytes leaves nothing beside the {self.title}'s "
                f"context of {self.context_bytes} bytes. Give --capacity more, such as 8GiB."
            )
        return replace(
            self, capacity_bytes=capacity_bytes, source=f"{self.source}; capacity as given"
        )

    def with_context(self, context_bytes: int, uncertainty_bytes: int, source: str) -> Card:
        """Return the same card with a context measured or given elsewhere.

        Args:
            context_bytes: bytes outside the allocator, >= 0.
            uncertainty_bytes: bytes either way, >= 0; 0 for a measured context.
            source: where the figure comes from, a few words.
        """
        return replace(
            self,
            context_bytes=context_bytes,
            context_uncertainty_bytes=uncertainty_bytes,
            source=f"{self.source}; context {source}",
        )

    def peak_flops(self, precision: Precision) -> float:
        """Return the dense peak of convolutions and products in operations a second.

        Args:
            precision: as on the command line (`amp-fp16`, `amp-bf16`, `fp32`), a dtype, or `tf32`.
                Where the card has no tensor path for it, the float32 rate is the peak.

        Raises:
            BadInputError: no such precision.
        """
        rates = {
            "amp-fp16": self.fp16_flops,
            "float16": self.fp16_flops,
            "amp-bf16": self.bf16_flops,
            "bfloat16": self.bf16_flops,
            "tf32": self.tf32_flops,
            "fp32": self.fp32_flops,
            "float32": self.fp32_flops,
        }
        if precision not in rates:
            known = ", ".join(rates)
            raise BadInputError(f"No precision {precision!r}. Use one of: {known}.")
        return rates[precision] or self.fp32_flops

    @property
    def memory_bus_bits(self) -> int:
        """Width of the memory's bus, which moves two bits a line and clock."""
        bits = self.bandwidth_bytes_per_second * 8 / (2 * self.memory_clock_mhz * 1e6)
        step = 32 if bits < 1000 else 1024  # stacked memory has a bus of its own each
        return round(bits / step) * step

    def cudnn_description(self) -> dict[str, object]:
        """Return this card as the device description cuDNN reads, a JSON object.

        The keys are those of cuDNN's `CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION` (9.8 and up; the
        bus's width is read by 9.28).
        Block and grid limits are the same on every CUDA device since compute capability 3.0.
        """
        major, minor = self.compute_capability
        limits = self.architecture
        return {
            "maxGridSize": [2147483647, 65535, 65535],
            "maxBlockSize": [1024, 1024, 64],
            "regsPerBlock": 65536,
            "multiProcessorCount": self.multiprocessors,
            "smClockRateKHz": self.boost_clock_mhz * 1000,
            "memClockRateKHz": self.memory_clock_mhz * 1000,
            "memoryBusWidth": self.memory_bus_bits,
            "l2CacheSize": self.l2_bytes,
            "warpSize": 32,
            "maxSharedMemoryPerBlock": limits.shared_memory_per_block_bytes,
            "maxSharedMemoryPerBlockOptin": limits.shared_memory_per_block_optin_bytes,
            "reservedSharedMemoryPerBlock": limits.reserved_shared_memory_per_block_bytes,
            "maxRegistersPerSM": limits.registers_per_multiprocessor,
            "maxCtasPerSM": limits.max_blocks_per_multiprocessor,
            "maxThreadsPerBlock": 1024,
            "maxThreadsPerSM": limits.max_threads_per_multiprocessor,
            "pciDeviceId": 0,
            "isTccDriver": 0,
            "supportCoopLaunch": 1,
            "totalGlobalMem": self.capacity_bytes,
            "cudaDeviceId": 0,
            "deviceVer": 100 * major + 10 * minor,
            "driverVer": CUDA_DRIVER_VERSION,
            "deviceName": self.title,
        }
