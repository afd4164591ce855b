"""Every kind of launch whose scratch is the card's to say.

To add one: write its class beside its law, name it here, and let a rule of `memplan.trace` yield
`Scratch(launch, buffer)`. Tape, fit, planner and replay read this table.
"""

from __future__ import annotations

from memplan.launches.batch_norm import BatchNormSums
from memplan.launches.efficient_attention import EfficientAttention
from memplan.launches.nonzero import Nonzero
from memplan.launches.radix_sort import Permutation, RadixSort
from memplan.launches.reduction import Reduction
from memplan.launches.scan import DeterministicScan
from memplan.launches.topk import TopK
from memplan.launches.unique import Numbering, Unique

AnyLaunch = (
    Reduction
    | TopK
    | EfficientAttention
    | BatchNormSums
    | Nonzero
    | RadixSort
    | Permutation
    | Unique
    | Numbering
    | DeterministicScan
)  # fmt: skip
LAUNCHES = (
    Reduction,
    TopK,
    EfficientAttention,
    BatchNormSums,
    Nonzero,
    RadixSort,
    Permutation,
    Unique,
    Numbering,
    DeterministicScan,
)
BUFFERS = tuple(name for kind in LAUNCHES for name in kind.BUFFERS)
"""The buffers of all kinds, as the tape's questions name them."""
