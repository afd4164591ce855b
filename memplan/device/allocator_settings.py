"""The options of PyTorch's CUDA caching allocator, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.device.allocator_options import Options, read_options
from memplan.units import MIB

MIN_BLOCK_BYTES = 512
SMALL_REQUEST_BYTES = 1 * MIB
SMALL_SEGMENT_BYTES = 2 * MIB
OWN_SEGMENT_BYTES = 10 * MIB
SEGMENT_QUANTUM_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB

NO_ROUNDUP = (0,) * 16
"""`roundup_power2_divisions` when the option is off: one entry for each power of two from 1 MiB."""


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """Options of the native backend; the defaults are PyTorch's.

    Source: `c10/core/AllocatorConfig.h` and `c10/cuda/CUDAAllocatorConfig.h` of PyTorch 2.11.
    Limits: `graph_capture_record_stream_reuse` is accepted and not simulated.
    """

    max_split_bytes: int | None = None
    """Blocks of at least this many bytes are oversize: never carved, hardly wasted. None: none."""
    max_non_split_rounding_bytes: int | None = None
    """Slack when an oversize block is reused whole, bytes. None: follows `large_segment_bytes`."""
    garbage_collection_threshold: float = 0.0
    """Fraction of the limit above which old cached blocks are released, in (0, 1). 0 disables."""
    roundup_power2_divisions: tuple[int, ...] = NO_ROUNDUP
    """Steps between powers of two, for sizes in [2^(20+i), 2^(21+i)). 0 means plain rounding."""
    expandable_segments: bool = False
    """Segments grow in place by mapping memory into a reserved address range."""
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    """Segment for requests between 1 and 10 MiB, and the unit of large expandable segments."""
    memory_fraction: float | None = None
    """The limit as a fraction of the device's memory, in [0, 1]. None: no limit."""
    throw_on_cudamalloc_oom: bool = False
    """Refuse a segment beyond the fraction before the driver is asked (PyTorch 2.12 and later)."""
    text: str = field(default="", compare=False)
    """The option string these settings were read from."""

    @classmethod
    def parse(
        cls,
        text: str,
        torch_version: tuple[int, int] = (2, 11),
        previous: AllocatorSettings | None = None,
    ) -> AllocatorSettings:
        """Return the settings that PyTorch reads from an option string.

        Args:
            text: comma-separated `key:value`, as in `PYTORCH_CUDA_ALLOC_CONF`; blanks are ignored.
            torch_version: major and minor of the release whose rules apply.
            previous: settings in force before; what PyTorch does not reset is kept from them.

        Raises:
            UsageError: a key that the release does not know, or a value outside its range.
        """
        kept = previous if previous is not None else cls()
        options = Options(
            expandable_segments=kept.expandable_segments,
            large_segment_bytes=kept.large_segment_bytes,
            max_non_split_rounding_bytes=kept.max_non_split_rounding_bytes,
            memory_fraction=kept.memory_fraction,
            throw_on_cudamalloc_oom=kept.throw_on_cudamalloc_oom,
        )
        read_options(text, torch_version, options)
        return cls(
            max_split_bytes=options.max_split_bytes,
            max_non_split_rounding_bytes=options.max_non_split_rounding_bytes,
            garbage_collection_threshold=options.garbage_collection_threshold,
            roundup_power2_divisions=tuple(options.roundup_power2_divisions),
            expandable_segments=options.expandable_segments,
            large_segment_bytes=options.large_segment_bytes,
            memory_fraction=options.memory_fraction,
            throw_on_cudamalloc_oom=options.throw_on_cudamalloc_oom,
            text=text,
        )

    @property
    def oversize_slack_bytes(self) -> int:
        """Bytes by which an oversize block may exceed a request and still serve it, exclusive."""
        if self.max_non_split_rounding_bytes is None:
            return self.large_segment_bytes
        return self.max_non_split_rounding_bytes

    def block_bytes(self, requested_bytes: int, torch_version: tuple[int, int] = (2, 11)) -> int:
        """Return the block size for a request: a multiple of 512, or a power-of-two step.

        Source: `round_size` in `c10/cuda/CUDACachingAllocator.cpp`. PyTorch 2.0 and 2.1 do not
        round at all with one division.
        """
        if requested_bytes < MIN_BLOCK_BYTES:
            return MIN_BLOCK_BYTES
        interval = min(max(requested_bytes.bit_length() - 21, 0), 15)
        divisions = self.roundup_power2_divisions[interval]
        unrounded = divisions == 1 and torch_version <= (2, 1)
        if (divisions > 1 or unrounded) and requested_bytes > MIN_BLOCK_BYTES * divisions:
            return requested_bytes if unrounded else _power2_step(requested_bytes, divisions)
        return -(-requested_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES

    def segment_bytes(self, block_bytes: int) -> int:
        """Return what the driver is asked for when no cached block serves `block_bytes`.

        Source: `get_allocation_size` in `c10/cuda/CUDACachingAllocator.cpp`.
        """
        if block_bytes <= SMALL_REQUEST_BYTES:
            return SMALL_SEGMENT_BYTES
        if block_bytes < OWN_SEGMENT_BYTES:
            return self.large_segment_bytes
        return -(-block_bytes // SEGMENT_QUANTUM_BYTES) * SEGMENT_QUANTUM_BYTES

    def unit_bytes(self, *, is_small: bool) -> int:
        """Return the piece in which expandable segments of a pool attach memory, bytes."""
        return SMALL_SEGMENT_BYTES if is_small else self.large_segment_bytes


def _power2_step(num_bytes: int, divisions: int) -> int:
    """Round up to the next of `divisions` equal steps between two powers of two."""
    low = 1 << (num_bytes.bit_length() - 1)
    if num_bytes == low:
        return num_bytes
    step = low // divisions
    return 2 * low if step == 0 else -(-num_bytes // step) * step
