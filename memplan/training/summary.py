"""What a finished run came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memplan.training.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The answer of `train`; memory is measured, bytes."""

    run_folder: Path
    epochs_done: int
    """Of the whole run, earlier sessions included."""
    stopped_early: bool
    """Whether patience ended the run before its last epoch."""
    best_epoch: int
    """The epoch of the best fitness, 1-based; 0 where nothing was evaluated."""
    best_metrics: dict[str, float]
    """Of that epoch; empty where nothing was evaluated."""
    metrics: dict[str, float]
    """Of the last evaluation."""
    seconds: float
    """Of this session."""
    images_per_second: float
    """Training images over the time of this session's training, evaluation left out."""
    micro_batch_size: int
    """At the end; smaller than asked when memory ran out."""
    accumulation_steps: int
    back_offs: int
    """How often memory ran out and the micro-batch was halved, in this session."""
    allocated_peak_bytes: int | None
    """Of the device; None on a CPU."""
    reserved_peak_bytes: int | None
    """Of the device; None on a CPU."""
    device_used_peak_bytes: int | None
    """Of the device, all processes, at the moments of reading; None on a CPU."""
    host_resident_peak_bytes: int
    """Of this process."""
    details: str = ""
    """The best epoch's evaluation as text to print, where the workload offers it."""
    was_finished: bool = False
    """Whether a resumed run had nothing left to train, so that this session did nothing."""
    draws: bool = True
    """Whether the run's own options, those of its first session too, let it be drawn."""


def finished_summary(checkpoint: Checkpoint, folder: Path, *, draws: bool) -> RunSummary:
    """Return what a run that is over came to, as its last checkpoint tells.

    Args:
        checkpoint: the last.
        folder: the run's.
        draws: whether this session's options let it be drawn.
    """
    return RunSummary(
        run_folder=folder,
        epochs_done=checkpoint.epoch,
        stopped_early=checkpoint.epoch < checkpoint.options.get("epochs", 0),
        best_epoch=checkpoint.best_epoch + 1,
        best_metrics=dict(checkpoint.best_metrics),
        metrics=dict(checkpoint.metrics),
        seconds=0.0,
        images_per_second=0.0,
        micro_batch_size=checkpoint.micro_batch_size,
        accumulation_steps=1,
        back_offs=0,
        allocated_peak_bytes=None,
        reserved_peak_bytes=None,
        device_used_peak_bytes=None,
        host_resident_peak_bytes=0,
        was_finished=True,
        draws=draws and not checkpoint.options.get("noplots"),
    )
