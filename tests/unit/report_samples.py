"""Answers of plausible size for the report's tests: yolov9-s at 640 px on a few cards."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from memplan.answers import (
    BatchPeaks,
    FitFacts,
    GpuFacts,
    ModuleMemory,
    PlanAnswer,
    Predicted,
    ProbeAnswer,
    Setting,
    TensorAtPeak,
    Timeline,
    WhatIf,
    WorkloadFacts,
)
from memplan.spec import Split, StepSpec

GIB = 1 << 30
MIB = 1 << 20
BASE = 610 * MIB
PER_IMAGE = 735 * MIB
VERSIONS = {"memplan": "0.1.0", "torch": "2.11.0", "cudnn": "9.19.0", "python": "3.11.2"}
WORKLOAD = WorkloadFacts(
    name="yolov9-s",
    img=640,
    spec=StepSpec(),
    parameters=7_167_475,
    objects_per_image=8,
)
RTX_3090 = GpuFacts(
    name="rtx-3090",
    capacity_bytes=25_296_044_032,
    context_bytes=370 * MIB,
    context_uncertainty_bytes=60 * MIB,
    source="catalogue: nvidia-smi of a published log, driver 535.104; context measured there",
    compute_capability="8.6",
)
A100 = GpuFacts(
    name="a100-80gb",
    capacity_bytes=85_097_971_712,
    context_bytes=420 * MIB,
    context_uncertainty_bytes=80 * MIB,
    source="catalogue: torch.cuda.get_device_properties in a published training log",
    compute_capability="8.0",
)
STEP = (
    ("transfer", 3),
    ("forward", 60),
    ("backward", 70),
    ("optimizer_step", 8),
    ("average", 3),
)


def sample_timeline(batch: int = 16, *, scale: float = 1.0) -> Timeline:
    """A life of four periods whose activations rise in forward and fall in backward."""
    periods: list[tuple[str, str, int]] = []
    rows: list[dict[str, int]] = []
    image = int(scale * 560 * MIB * batch)

    def add(period: str, phase: str, count: int, gradient: int, optimizer: int) -> None:
        periods.append((period, phase, len(rows)))
        for i in range(count):
            part = (i + 1) / count
            rise = {"forward": part, "backward": 1 - part}.get(phase, 0.0)
            active = int(image * rise**0.8) if rise > 0 else 0
            if phase == "predict":
                active = int(0.12 * image * math.sin(part * math.pi))
            rows.append(
                {
                    "parameter": 28 * MIB,
                    "optimizer_state": optimizer,
                    "gradient": gradient if phase != "backward" else int(28 * MIB * part),
                    "input": 0 if period == "build" else int(batch * 4.7 * MIB),
                    "activation": active,
                    "workspace": 100 * MIB * (i % 5 == 1) if phase in STEP[1] + STEP[2] else 0,
                    "temporary": int(0.1 * image) * (i % 7 == 3) if rise else 0,
                    "context": RTX_3090.context_bytes,
                }
            )

    add("build", "transfer", 6, 0, 0)
    for period in ("first_step", "accumulation_step", "steady_step"):
        for phase, count in STEP:
            if period == "accumulation_step" and phase in ("optimizer_step", "average"):
                continue
            first = period == "first_step" and phase != "optimizer_step"
            add(period, phase, count, 28 * MIB, 0 if first else 28 * MIB)
    add("validation", "predict", 30, 0, 28 * MIB)
    reserved = 0
    for row in rows:
        allocated = sum(row.values()) - row["context"]
        reserved = max(reserved, allocated + 40 * MIB * (allocated > GIB))
        row["cached"] = reserved - allocated
    names = (*rows[0],)
    return Timeline(
        periods=tuple(periods), categories={n: tuple(row[n] for row in rows) for n in names}
    )


def sample_modules(batch: int = 16, *, workspace: int = 100 * MIB) -> tuple[ModuleMemory, ...]:
    """Forty blocks of a few modules each, shrinking with depth as a detector's do."""
    modules = []
    types = ("Conv", "Conv", "ELAN1", "AConv", "RepNCSPELAN4", "AConv", "RepNCSPELAN4", "SPPELAN")
    for i in range(30):
        size = int(batch * 52 * MIB * (0.82**i + 0.12 * (i % 3 == 1)))
        kind = types[i % len(types)] if i < 29 else "DualDDetect"
        modules.append(_module(f"model.{i}", kind, 0, 0))
        modules.append(_module(f"model.{i}.cv1", "Conv", size // 3, 0))
        modules.append(
            _module(f"model.{i}.cv1.conv", "Conv2d", size // 3, workspace // (1 + i % 4))
        )
        modules.append(_module(f"model.{i}.cv1.bn", "BatchNorm2d", size // 3, 0))
    return (*modules, _module("", "", 90 * MIB, 0))


def _module(path: str, kind: str, activation: int, workspace: int) -> ModuleMemory:
    return ModuleMemory(
        path=path,
        type=kind,
        output_shape=(16, 64, 160, 160),
        activation_bytes=activation,
        workspace_bytes=workspace,
        forward_flops=10**9,
    )


def sample_tensors() -> tuple[TensorAtPeak, ...]:
    """Fifteen tensors alive at the peak, of shrinking size."""
    return tuple(
        TensorAtPeak(
            num_bytes=(16 - i) * 10 * MIB,
            category="activation" if i % 3 else "gradient",
            operator="aten.convolution.default",
            phase="forward",
            module=f"model.{i}.cv1.conv",
            module_type="Conv2d",
            shape=(16, 64, 160, 160) if i % 2 else (),
            element_bytes=2 if i % 2 else 0,
        )
        for i in range(15)
    )


def sample_probe(
    gpu: GpuFacts = RTX_3090, batches: tuple[int, ...] = (*range(1, 65),)
) -> ProbeAnswer:
    """A probe of yolov9-s on one card, batches 1 to 64."""
    peaks = tuple(_peaks(batch, gpu) for batch in batches)
    largest = (gpu.capacity_bytes - gpu.context_bytes - BASE) // PER_IMAGE
    reference = min(16, max(batches))
    timeline = sample_timeline(reference)
    sums = [sum(column) for column in zip(*timeline.categories.values(), strict=True)]
    top = sums.index(max(sums))
    return ProbeAnswer(
        workload=WORKLOAD,
        gpu=gpu,
        fit=FitFacts(
            base_bytes=BASE,
            bytes_per_image=PER_IMAGE,
            max_residual_bytes=17 * MIB,
            recorded_batches=(2, 3, 5),
            not_affine={"aten::nonzero": 3 * MIB},
        ),
        batches=peaks,
        reference_batch=reference,
        categories_at_peak={name: values[top] for name, values in timeline.categories.items()},
        modules=sample_modules(reference),
        largest_batch=largest,
        recommended=sample_setting(16, 4, 16 * PER_IMAGE + BASE + gpu.context_bytes, 148.0),
        timeline=timeline,
        tensors_at_peak=sample_tensors(),
        what_if=sample_what_if(reference, gpu),
        unknown_operators={"aten::_thnn_fused_lstm_cell": 2, "torchvision::deform_conv2d": 4},
        command="memplan probe --cfg yolov9-s --img 640 --batch 1:64 --gpu rtx-3090",
        versions=VERSIONS,
        seconds=11.4,
        notes=("Validation runs at twice the micro-batch with the averaged model, as YOLO does.",),
    )


def sample_what_if(batch: int, gpu: GpuFacts) -> tuple[WhatIf, ...]:
    """The training as asked, a change that saves, one that costs and one that is refused."""
    asked = BASE + PER_IMAGE * batch + gpu.context_bytes
    changes = (
        ("", StepSpec(), 1.0, ""),
        ("--optimizer AdamW", StepSpec(optimizer="AdamW"), 1.02, ""),
        ("--lean", StepSpec(lean=True), 0.6, ""),
        ("--precision amp-bf16", StepSpec(precision="amp-bf16"), 0.0, "No card here has it"),
    )
    return tuple(
        WhatIf(
            options=options,
            spec=spec,
            micro_batch_size=batch,
            device_used_peak_bytes=int(asked * share),
            fits=bool(share),
            largest_batch=int(30 / share) if share else 0,
            images_per_second=140.0 if share else 0.0,
            refusal=refusal,
        )
        for options, spec, share, refusal in changes
    )


def _peaks(batch: int, gpu: GpuFacts) -> BatchPeaks:
    wobble = int(17 * MIB * math.sin(batch * 1.7))
    reserved = BASE + PER_IMAGE * batch + wobble
    return BatchPeaks(
        micro_batch_size=batch,
        allocated_peak_bytes=int(reserved * 0.94),
        reserved_peak_bytes=reserved,
        device_used_peak_bytes=reserved + gpu.context_bytes,
        peak_phase="backward",
        peak_period="first_step",
        peak_module="model.22.cv3",
        fits=reserved + gpu.context_bytes <= gpu.capacity_bytes,
    )


def sample_setting(
    micro: int, steps: int, device_used: int, speed: float, recompute: tuple[str, ...] = ()
) -> Setting:
    """One setting with its prediction."""
    return Setting(
        spec=StepSpec(
            memory_format="channels-last" if micro % 3 == 0 else "contiguous", recompute=recompute
        ),
        split=Split(micro_batch_size=micro, accumulation_steps=steps),
        nominal_batch_size=64,
        predicted=Predicted(
            allocated_peak_bytes=int((device_used - 370 * MIB) * 0.94),
            reserved_peak_bytes=device_used - 370 * MIB,
            device_used_peak_bytes=device_used,
            peak_phase="backward",
            images_per_second=speed,
            epoch_seconds=118_287 / speed,
        ),
    )


def sample_plan() -> PlanAnswer:
    """A plan for the same network with nine alternatives, the seventh chosen."""
    blocks = tuple(f"model.{i}" for i in range(1, 22, 2))
    settings = tuple(
        sample_setting(micro, steps, int(share * 23.5 * GIB), speed, recompute)
        for micro, steps, share, speed, recompute in (
            (2, 32, 0.09, 61.0, ()),
            (4, 16, 0.16, 92.0, ()),
            (6, 11, 0.23, 111.0, ()),
            (8, 8, 0.30, 124.0, ()),
            (16, 4, 0.41, 128.0, blocks),
            (16, 4, 0.53, 144.0, ()),
            (21, 3, 0.67, 149.5, ()),
            (32, 2, 0.88, 151.0, ("model.2", "model.4")),
        )
    )
    chosen = settings[-1]
    shared = {
        field.name: getattr(chosen, field.name)
        for field in dataclasses.fields(Setting)
        if field.name != "predicted"
    }
    budget = int(RTX_3090.capacity_bytes * 0.95)
    return PlanAnswer(
        workload=WORKLOAD,
        gpu=RTX_3090,
        predicted=chosen.predicted,
        budget_bytes=budget,
        headroom_bytes=budget - chosen.predicted.device_used_peak_bytes,
        alternatives=settings,
        command="memplan train --cfg yolov9-s --img 640 --batch 32 --accumulate 2 "
        "--recompute model.2,model.4 --precision amp-fp16 --data coco.yaml",
        versions=VERSIONS,
        seconds=21.0,
        **shared,
    )


def write_run_folder(folder: Path, *, epochs: int = 12, measured: bool = True) -> Path:
    """A run folder with both tables, device memory measured or not."""
    folder.mkdir(parents=True, exist_ok=True)
    header = "epoch,train/box_loss,train/cls_loss,train/dfl_loss,metrics/precision,"
    header += "metrics/mAP_0.5,metrics/mAP_0.5:0.95,val/box_loss,val/cls_loss,val/dfl_loss,lr"
    rows = [header]
    for epoch in range(epochs):
        fall = math.exp(-epoch / 5)
        rows.append(
            f"{epoch},{1.1 + 3 * fall:.4f},{0.8 + 4 * fall:.4f},{1.3 + 1.5 * fall:.4f},"
            f"{0.6 - 0.5 * fall:.4f},{0.82 * (1 - fall):.4f},{0.55 * (1 - fall):.4f},"
            f"{1.2 + 3.2 * fall:.4f},{0.9 + 4.1 * fall:.4f},{1.4 + 1.6 * fall:.4f},0.01"
        )
    (folder / "results.csv").write_text("\n".join(rows) + "\n")
    rows = ["step,predicted_allocated_bytes,predicted_reserved_bytes,predicted_device_used_bytes,"]
    rows[0] += "live_allocated_bytes,live_reserved_bytes,live_device_used_bytes"
    for step in range(0, 600, 5):
        live = int(11.0 * GIB + 0.15 * GIB * math.sin(step / 9))
        cells = [11_900_000_000, 12_600_000_000, 13_000_000_000]
        cells += [live, live + 700 * MIB, live + 1100 * MIB] if measured else []
        rows.append(",".join([str(step), *map(str, cells), *([""] * (7 - 1 - len(cells)))]))
    (folder / "memory.csv").write_text("\n".join(rows) + "\n")
    return folder
