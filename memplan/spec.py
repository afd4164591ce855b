"""How a training step is executed."""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.errors import UsageError
from memplan.workload import OptimizerSettings

PRECISIONS = ("amp-fp16", "amp-bf16", "fp32")
MEMORY_FORMATS = ("contiguous", "channels-last")


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """How a step is executed."""

    precision: str = "amp-fp16"
    """`amp-fp16` (autocast with a gradient scaler), `amp-bf16` (autocast) or `fp32`."""
    memory_format: str = "contiguous"
    """`contiguous` (NCHW) or `channels-last` (NHWC)."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """How the optimizer is built."""
    recompute: tuple[str, ...] = ()
    """Paths of modules that recompute their activations in backward; empty recomputes none."""
    lean: bool = False
    """Whether blocks keep for backward only what they cannot rebuild cheaply; see
    `Workload.make_lean`."""
    compiled: bool = False
    """Whether the model runs through `torch.compile`; such a step cannot be recorded."""
    deterministic: bool = False
    """Whether `torch.use_deterministic_algorithms(True)` holds, and cuDNN's like."""
    cudnn_benchmark: bool = False
    """Whether `torch.backends.cudnn.benchmark` holds: the fastest plan by trial."""
    allow_tf32: bool = True
    """Whether `torch.backends.cudnn.allow_tf32` holds, as it does by default; for fp32 only."""

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            UsageError: a precision or memory format that does not exist.
        """
        for option, value, known in (
            ("--precision", self.precision, PRECISIONS),
            ("--memory-format", self.memory_format, MEMORY_FORMATS),
        ):
            if value not in known:
                raise UsageError(f"{option} {value!r} is not one of {', '.join(known)}.")
