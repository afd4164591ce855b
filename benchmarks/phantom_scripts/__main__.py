"""Runs other people's unmodified training scripts on a phantom card, one row each.

The packages are installed into an environment of their own, whose interpreter is given; see the
README beside this file for versions. A row that needs a checkout is left out without one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import publish
from memplan.device.chosen import calibrated_card
from memplan.errors import MemplanError
from memplan.phantom.launch import environment
from memplan.recording.run import run
from memplan.script_answer import ScriptAnswer
from memplan.units import gib

HERE = Path(__file__).parent
CARD = "rtx-3090"
_REPEATS = 5
_WATCHED = ("nothing", "attribution", "all")
_YOLO = ("yolov8n", "yolo11s", "yolo26n")


@dataclass(frozen=True)
class Row:
    """One script: what to call it, and its command after the interpreter."""

    name: str
    command: tuple[str, ...]
    steps: int | None = None


def rows(python: Path, official: Path | None, data: Path) -> list[Row]:
    """Return the scripts to run."""
    own = [
        Row("Lightning, ResNet-18", ("lightning_classifier.py",)),
        Row("Accelerate, ResNet-50", ("accelerate_classifier.py",)),
        Row("torchvision reference style, Faster R-CNN", ("torchvision_detection.py",)),
        Row("timm, ViT-S", ("timm_training.py", "vit_small_patch16_224")),
        Row("timm, ResNet-50", ("timm_training.py", "resnet50")),
        Row("transformers Trainer, small BERT", ("transformers_trainer.py",)),
        Row("torch.compile, ResNet-18", ("compiled_resnet.py",)),
    ]
    found = [
        Row(row.name, (str(python), str(HERE / row.command[0]), *row.command[1:])) for row in own
    ]
    yolo = python.parent / "yolo"
    if yolo.exists():
        options = (f"data={data}", "imgsz=640", "batch=16", "epochs=2", "workers=2", "device=0")
        found += [
            Row(
                f"ultralytics, {name}",
                (str(yolo), "detect", "train", f"model={name}.yaml", *options),
            )
            for name in _YOLO
        ]
    if official is not None:
        found += [
            _official(python, official, data, "train_dual.py", "yolov9-s"),
            _official(python, official, data, "train.py", "gelan-s"),
        ]
    return found


def _official(python: Path, checkout: Path, data: Path, script: str, name: str) -> Row:
    command = (
        f"--workers 2 --device 0 --batch 16 --data {data} --img 640 "
        f"--cfg {checkout}/models/detect/{name}.yaml "
        f"--hyp {checkout}/data/hyps/hyp.scratch-high.yaml "
        "--min-items 0 --epochs 20 --close-mosaic 15 --weights"
    ).split()
    return Row(
        f"official YOLOv9, {script} {name}",
        (str(python), str(checkout / script), *command, ""),
        steps=20,
    )


def told(row: Row) -> tuple[str, ...]:
    """Return a row's cells."""
    print(f"{row.name} ...", file=sys.stderr)
    begun = time.perf_counter()
    try:
        answer = run(row.command, gpu=CARD, steps=row.steps, timeout_seconds=600)
    except MemplanError as error:
        return row.name, "", "", "", "", "", "", str(error)
    return _cells(row.name, answer, time.perf_counter() - begun)


def _cells(name: str, answer: ScriptAnswer, seconds: float) -> tuple[str, ...]:
    by_rule = sum(one.count for one in answer.by_rule)
    failed = answer.error.message if answer.error else "" if answer.runs else "out of memory"
    return (
        name,
        str(answer.num_steps),
        gib(answer.allocated_peak_bytes),
        gib(answer.reserved_peak_bytes),
        f"{seconds:.1f}",
        str(answer.from_host),
        str(by_rule),
        failed or "no",
    )


def overhead() -> str:
    """Return a sentence about what watching costs a step, all run by turns."""
    script = [sys.executable, str(HERE / "plain_steps.py"), "--watch"]
    variables = environment(calibrated_card(CARD))
    rounds = [
        [_milliseconds([*script, watched], variables) for watched in _WATCHED]
        for _ in range(_REPEATS)
    ]
    alone = statistics.median(one[0] for one in rounds)
    parts = [f"A step of yolov9-s at batch 16 takes {alone:.0f} ms of CPU on the phantom alone"]
    for index, what in ((1, "with the history and its modules"), (2, "with values, too")):
        median = statistics.median(one[index] for one in rounds)
        ratios = [one[index] / one[0] for one in rounds]
        parts.append(
            f"{median:.0f} ms {what}, ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return f"{'; '.join(parts)}; medians of {_REPEATS} rounds by turns."


def _milliseconds(command: list[str], variables: dict[str, str]) -> float:
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Run every script and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="interpreter with the packages")
    parser.add_argument("--official", type=Path, help="checkout of the official YOLOv9 repository")
    parser.add_argument("--data", type=Path, required=True, help="a YOLO data.yaml")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    options = parser.parse_args()
    # What is run starts elsewhere; an interpreter's link must not be followed out of its folder.
    python, data = options.python.absolute(), options.data.resolve()
    official = options.official.resolve() if options.official else None
    chosen = [row for row in rows(python, official, data) if options.only in row.name]
    cells = [told(row) for row in chosen]
    remark = overhead()
    publish(
        "phantom_scripts",
        f"Unmodified training scripts on a phantom {CARD}",
        ("Script", "Steps", "Allocated GiB", "Reserved GiB", "Seconds", "Host reads", "By rule",
         "Failed"),
        cells,
        [
            "PyTorch's own host code on a card that is not there: not a measurement.",
            "Seconds are the whole command, imports and data included; steps end when peaks are "
            "steady and a near validation is over.",
            "By rule: values that depend on the network, answered as `memplan run` says.",
            f"Packages: {_packages(python)}.",
            remark,
        ],
        "phantom_scripts --python INTERPRETER --data DATA.yaml [--official CHECKOUT]",
    )  # fmt: skip


def _packages(python: Path) -> str:
    code = (
        "from importlib.metadata import version\n"
        "for n in 'torch ultralytics lightning accelerate timm transformers'.split():\n"
        "  try: print(n, version(n), end=', ')\n"
        "  except Exception: pass\n"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip(", ")


if __name__ == "__main__":
    main()
