"""Good files of every kind that memplan reads, and commands that read them and end soon."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bad_input_cases import (
    Kind,
    change_checkpoint,
    change_json,
    change_npz,
    change_pickle,
    change_yaml,
    change_zip,
    odd_yaml,
)

if TYPE_CHECKING:
    from memplan.answers import PlanAnswer

TINY = """nc: 20
depth_multiple: 1.0
width_multiple: 1.0
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 2, RepNCSPELAN4, [16, 16, 8, 1]]
  - [-1, 1, ADown, [16]]
  - [-1, 1, SPPELAN, [16, 8]]
head:
  - [-1, 1, nn.Upsample, [None, 2, 'nearest']]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, Conv, [16, 1, 1]]
  - [[7, 4], 1, DDetect, [nc]]
"""


def make_kinds(folder: Path) -> tuple[list[Kind], dict[str, tuple[str, ...]]]:
    """Return kinds of files, and arguments by command with which it ends soon."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        return _made()
    finally:
        os.chdir(here)


def _made() -> tuple[list[Kind], dict[str, tuple[str, ...]]]:
    from memplan.answers import save_answers
    from memplan.cli import exit_code

    assert exit_code(["data", "sample", "good"]) == 0
    Path("tiny.yaml").write_text(TINY)
    _keep_few()
    train = ("train", "--data", "good/data.yaml", "--cfg", "tiny.yaml", "--img", "64", "--device",
             "cpu", "--workers", "0", "--noplots", "--name", "x")  # fmt: skip
    assert exit_code([*train, "--epochs", "1", "--batch", "4", "--nosave"]) == 0
    probe = ("probe", "--cfg", "tiny.yaml", "--img", "64", "--batch", "1", "--gpu", "t4")
    assert exit_code([*probe, "--output", "probe.json", "--tape", "good.tape"]) == 0
    save_answers(Path("plan.json"), [_plan()], force=True)
    # Ends once data, model and weights have been read: no model has so many layers.
    ends = (*train, "--freeze", "9999")
    bases = {
        "probe": (*probe[1:-1], "no-such-card"),
        "plan": ("--cfg", "tiny.yaml", "--img", "64", "--gpu", "no-such-card"),
        "train": ends[1:],
        "check": ("probe.json",),
        "replay": ("good.tape", "--capacity", "8GiB"),
        "gpus": (),
        "export": ("--weights", "runs/train/x/weights/best.pt", "--format", "pt", "--force",
                   "--cfg", "no-such-cfg"),
        "report": ("no-such-file",),
        "data": ("sample",),
    }  # fmt: skip
    return _kinds(ends), bases


def _keep_few() -> None:
    """Leave four images to a split: each command that opens the data reads all of them."""
    for split in ("train", "val"):
        for path in sorted(Path("good/images", split).iterdir())[4:]:
            path.unlink()


def _plan() -> PlanAnswer:
    """Return a plan of the saved probe's workload."""
    from memplan.answers import PlanAnswer, Predicted, ProbeAnswer, Setting, load_answers
    from memplan.spec import Split, StepSpec

    [probe] = load_answers(Path("probe.json"))
    assert isinstance(probe, ProbeAnswer)
    row = probe.batches[0]
    predicted = Predicted(
        allocated_peak_bytes=row.allocated_peak_bytes,
        reserved_peak_bytes=row.reserved_peak_bytes,
        device_used_peak_bytes=row.device_used_peak_bytes,
        peak_phase=row.peak_phase, images_per_second=10.0, epoch_seconds=None,
    )  # fmt: skip
    setting: dict[str, Any] = {
        "split": Split(micro_batch_size=2, accumulation_steps=2), "nominal_batch_size": 64,
        "spec": StepSpec(precision="fp32", recompute=("model.2",)), "predicted": predicted,
    }  # fmt: skip
    return PlanAnswer(
        workload=probe.workload, gpu=probe.gpu, budget_bytes=1 << 34, headroom_bytes=1 << 33,
        alternatives=(Setting(**setting),), command="memplan train", versions=probe.versions,
        seconds=1.0, **setting,
    )  # fmt: skip


def _images() -> list[str]:
    return [
        str(path.relative_to("good")) for path in sorted(Path("good/images/train").rglob("*.jpg"))
    ]


def _replaced(arguments: tuple[str, ...], option: str) -> tuple[str, ...]:
    at = arguments.index(option) + 1
    return (*arguments[:at], "{file}", *arguments[at + 1 :])


def _kinds(ends: tuple[str, ...]) -> list[Kind]:
    from memplan_models.yolo_data import hyperparameters

    data = Path("good/data.yaml").read_bytes()
    hyp = Path(hyperparameters.__file__).with_name("hyp").joinpath("scratch-high.yaml")
    last = _unfinished(Path("runs/train/x/weights/last.pt"))
    image = Path("good") / _images()[0]
    label = Path("good/labels/train") / f"{image.stem}.txt"
    of_yaml, of_json = (odd_yaml, change_yaml), (change_json,)
    calibrated = "memplan/calibrations/t4.json"
    return [
        Kind(name="data.yaml", content=data, place="good/bad.yaml", share=3,
             arguments=_replaced(ends, "--data"), structured=of_yaml),
        Kind(name="model.yaml", content=TINY.encode(), place="bad.yaml", share=4,
             arguments=_replaced(ends, "--cfg"), structured=of_yaml),
        Kind(name="hyp.yaml", content=hyp.read_bytes(), place="hyp.yaml", share=2,
             arguments=(*ends, "--hyp", "{file}"), structured=of_yaml),
        Kind(name="labels", content=label.read_bytes(), place=str(label), arguments=ends),
        Kind(name="image", content=image.read_bytes(), place=str(image), arguments=ends, share=0.5),
        Kind(name="weights", content=last, place="w.pt", share=2,
             arguments=(*ends, "--weights", "{file}"),
             structured=(change_zip, change_checkpoint)),
        Kind(name="last.pt", content=last, place="runs/train/bad/weights/last.pt", share=2,
             arguments=("train", "--resume", "{file}", "--device", "cpu", "--noplots"),
             structured=(change_zip, change_checkpoint, change_checkpoint)),
        Kind(name="export weights", content=last, place="e.pt",
             arguments=("export", "--weights", "{file}", "--cfg", "yolov9-t", "--format", "pt",
                        "--force"), structured=(change_zip,)),
        Kind(name="probe.json", content=_unsealed("probe.json"), place="p.json", share=3,
             arguments=("check", "{file}", "--budget", "1GiB", "--baseline", "probe.json"),
             structured=of_json),
        Kind(name="plan.json", content=_unsealed("plan.json"), place="q.json", share=3,
             arguments=("train", "--plan", "{file}", "--cfg", "tiny.yaml", "--data",
                        "good/data.yaml", "--device", "cpu", "--workers", "0", "--name", "y",
                        "--freeze", "9999"), structured=of_json),
        Kind(name="tape", content=Path("good.tape").read_bytes(), place="bad.tape", share=4,
             arguments=("replay", "{file}", "--gpu", "t4"),
             structured=(change_npz, change_npz, change_zip)),
        Kind(name="snapshot", content=_snapshot(), place="bad.pickle", share=2,
             arguments=("replay", "{file}"), structured=(change_pickle,)),
        Kind(name="calibration", content=_calibration(), place=calibrated, share=2,
             arguments=("gpus",), structured=of_json),
        Kind(name="results.csv", content=Path("runs/train/x/results.csv").read_bytes(),
             place="runs/train/csv/results.csv", share=0.1,
             arguments=("report", "runs/train/csv", "--output", "r.pdf", "--force")),
        Kind(name="report of a plan", content=_unsealed("plan.json"), place="r.json",
             share=0.1, arguments=("report", "{file}", "--output", "r.pdf", "--force"),
             structured=of_json),
    ]  # fmt: skip


def _snapshot() -> bytes:
    """Return a small memory snapshot as PyTorch dumps it."""
    frames: list[Any] = []
    trace = [
        {"action": "segment_alloc", "addr": 1 << 33, "size": 2 << 20, "stream": 0},
        {"action": "alloc", "addr": 1 << 33, "size": 512, "stream": 0},
        {"action": "free_requested", "addr": 1 << 33, "size": 512, "stream": 0},
        {"action": "free_completed", "addr": 1 << 33, "size": 512, "stream": 0},
    ]
    for entry in trace:
        entry |= {"frames": frames, "time_us": 1}
    block = {"size": 2 << 20, "requested_size": 0, "state": "inactive", "address": 1 << 33,
             "frames": frames}  # fmt: skip
    segment = {
        "device": 0, "address": 1 << 33, "total_size": 2 << 20, "allocated_size": 0,
        "active_size": 0, "requested_size": 0, "stream": 0, "segment_type": "small",
        "segment_pool_id": (0, 0), "is_expandable": False, "frames": frames, "blocks": [block],
    }  # fmt: skip
    content = {"segments": [segment], "device_traces": [trace], "allocator_settings": {}}
    return pickle.dumps(content)


def _calibration() -> bytes:
    from memplan.device.calibration import Calibration

    path = Path("calibration.json")
    Calibration(
        card="t4", device_name="Tesla T4", capacity_bytes=15 << 30, driver="1",
        versions={"torch": "2.11.0"}, context_bytes=400 << 20, bandwidth_fraction=0.8,
        launch_seconds=4e-6, measured_on="2026-01-01", arithmetic_fraction={"amp-fp16": 0.5},
        context_bytes_by_phase={"step": 400 << 20}, library_handle_bytes={"cublas": 1 << 20},
    ).save(path)  # fmt: skip
    return _unsealed(str(path))


def _unsealed(name: str) -> bytes:
    """Return an answer without the checksum that would tell of any change."""
    values = json.loads(Path(name).read_bytes())
    del values["checksum"]
    return json.dumps(values, indent=1).encode()


def _unfinished(path: Path) -> bytes:
    """Return a checkpoint of a run that may go on."""
    import torch

    buffer = io.BytesIO()
    torch.save({**torch.load(path, weights_only=True), "finished": False}, buffer)
    return buffer.getvalue()
