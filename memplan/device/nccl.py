"""Device memory that NCCL holds for one communicator, outside the caching allocator.

| cards | channels | MiB | from |
|---|---:|---:|---|
| with NVLink switches or bridges (SXM boards, A100, A30) | 24 | 590 | public out-of-memory texts:
  A100 1.07 and 1.09 GiB with NCCL against 0.50 without, H200 1.14 against 0.51; 544 MB for two and
  688 MB for four A100 in NCCL issue 964 |
| over PCIe (GeForce, L4, L40S, A10, A40, T4, PCIe boards) | 4 | 177 | the rule below |

The rule: memory is linear in the channels (NCCL's maintainer in its issue 864). A channel of two
ranks has two connections that receive, for ring and tree, of 4 MiB, 4.69 MiB and 0.5 MiB for the
protocols Simple, LL128 and LL (NCCL src/include/device.h: DEFAULT_BUFFSIZE, DEFAULT_LL128_BUFFSIZE,
DEFAULT_LL_BUFFSIZE). Of the A100's 544 MB that leaves 103 MiB for kernels and handles, which do not
depend on the channels.

Limits: one communicator and one machine. Point-to-point exchange, further process groups and
network transport come on top. NCCL_BUFFSIZE and NCCL_MAX_NCHANNELS change the figures; both are
left at their defaults. The uncertainty covers boards and topologies whose channels differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.units import KIB, MIB

if TYPE_CHECKING:
    from memplan.device.card import Card

NVLINK_BYTES = 590 * MIB
UNCERTAINTY_BYTES = 150 * MIB
_CONNECTION_BYTES = 4 * MIB + 4800 * KIB + 512 * KIB
_CONNECTIONS_A_CHANNEL = 2
_FIXED_BYTES = 103 * MIB
_CHANNELS_OVER_PCIE = 4
# By catalogue name; a card that is not here talks over PCIe. RTX 3090s take a bridge that few have.
_WITH_NVLINK = {
    "p100", "v100-16gb", "v100-32gb", "a30", "a100-40gb", "a100-80gb", "h100-80gb", "h200", "b200",
}  # fmt: skip


def communicator_bytes(card: Card) -> int:
    """Return the bytes a process holds for one data-parallel communicator in a machine."""
    if card.name in _WITH_NVLINK:
        return NVLINK_BYTES
    return _FIXED_BYTES + _CHANNELS_OVER_PCIE * _CONNECTIONS_A_CHANNEL * _CONNECTION_BYTES
