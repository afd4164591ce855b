"""A tiny detection data set and the command line in a process of its own, for these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml


def write_set(root, *, side=64, suffix=".png", **entries):
    """Write 8 training and 4 validation images of one white square each; return the data.yaml."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 255, (side, side, 3), np.uint8)
            x, y = rng.integers(16, side - 16, 2)
            image[y - 10 : y + 10, x - 10 : x + 10] = 255
            cv2.imwrite(str(root / f"images/{split}/{number}{suffix}"), image)
            row = f"{number % 2} {x / side} {y / side} {20 / side} {20 / side}\n"
            (root / f"labels/{split}/{number}.txt").write_text(row)
    description = {"path": ".", "train": "images/train", "val": "images/val", "names": ["a", "b"]}
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump(description | entries, sort_keys=False))
    return path


def memplan(*arguments, cwd):
    """Return the finished process of a command line, its output captured as text."""
    return subprocess.run(
        _command(arguments),
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def memplan_started(*arguments, cwd):
    """Return a process whose standard error is read line by line."""
    return subprocess.Popen(
        _command(arguments),
        cwd=cwd,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _command(arguments):
    return [sys.executable, "-c", "from memplan.cli import main; main()", *map(str, arguments)]


def _environment():
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(Path(os.environ.get("TMPDIR", "/tmp")) / "memplan-tests-matplotlib"),
        "CUDA_VISIBLE_DEVICES": "",
    }
