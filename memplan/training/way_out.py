"""What to do where nothing that a run may do made room: the plan that would fit."""

from __future__ import annotations

import shlex

import torch

from memplan.answers import PlanAnswer, Setting
from memplan.training.setup import Setup
from memplan.units import format_bytes


def plan_that_fits(setup: Setup) -> str:
    """Return a sentence on the plan that fits what the device has for this run; empty if unknown.

    The fastest of the plan's other settings that takes less than this one took and no more than
    there is, by its prediction; without a plan the command that makes one.
    """
    setting = None if setup.plan is None else _fastest(setup.plan, _room_bytes(setup.step.device))
    if setting is not None:
        predicted = setting.predicted
        words = ["--batch-per-device", str(setting.split.micro_batch_size)]
        words += ["--accumulate", str(setting.split.accumulation_steps)]
        words += setting.spec.options("train")
        return (
            f"A setting of the plan that takes {format_bytes(predicted.device_used_peak_bytes)} "
            f"(predicted): {shlex.join(words)}."
        )
    options, device = setup.options, setup.step.device
    if not options.cfg or setup.plan is not None:
        return ""
    words = ["memplan", "train", "--auto-batch"]
    words += ["--workload" if ":" in options.cfg else "--cfg", options.cfg]
    words += ["--data", str(options.data), "--img", str(options.image_size)]
    words += ["--device", str(device.index or 0) if device.type == "cuda" else "cpu"]
    return f"Planned to fit: {shlex.join(words)}."


def _fastest(plan: PlanAnswer, room_bytes: int | None) -> Setting | None:
    most = plan.predicted.device_used_peak_bytes
    fitting = [
        one
        for one in plan.alternatives
        if one.predicted.device_used_peak_bytes < most
        and (room_bytes is None or one.predicted.device_used_peak_bytes <= room_bytes)
    ]
    return max(fitting, key=lambda one: one.predicted.images_per_second, default=None)


def _room_bytes(device: torch.device) -> int | None:
    """Return what the device has for this process, its context included; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)
