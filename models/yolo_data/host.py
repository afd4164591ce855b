"""Host memory that reading a data set takes beside the training process, known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.processes import num_cores
from memplan.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .decode import ImageStore
    from .scan import LabelledImage

# Measured: proportional set sizes of the loader processes of the sample set at 160, 640 and 1280
# pixels, torch 2.11 (docs/train.md). The first is what they share, of libraries above all.
_SHARED_BYTES = 450 * MIB
_WORKER_BYTES = 15 * MIB
_CANVASES = 5  # of twice the side, that a mosaic is made of
_BATCHES_AHEAD = 2  # a process; torch's prefetch_factor
_CHANNELS = 3


def host_bytes(
    images: Sequence[LabelledImage],
    kept: Iterable[ImageStore],
    *,
    size: int,
    micro_batch_size: int,
    num_workers: int,
) -> dict[str, int]:
    """Return bytes by what takes them: images kept, loader processes, batches read ahead.

    Args:
        images: of the training split.
        kept: stores whose images stay in memory.
        size: side of the samples, pixels.
        micro_batch_size: images in a batch.
        num_workers: loader processes asked for; more than cores or batches there are not.
    """
    workers = min(num_workers, num_cores(), -(-len(images) // micro_batch_size))
    found = {"images kept": sum(store.num_bytes for store in kept)}
    if workers:
        decoded = max((_CHANNELS * one.height * one.width for one in images), default=0)
        each = _WORKER_BYTES + _CANVASES * _CHANNELS * (2 * size) ** 2 + decoded
        batch = micro_batch_size * _CHANNELS * size**2
        name = f"{workers} loader process{'' if workers == 1 else 'es'}"
        found[name] = _SHARED_BYTES + workers * each
        found["batches ahead"] = _BATCHES_AHEAD * workers * batch
    return {name: count for name, count in found.items() if count}
