"""The side of `official_parity` that runs the official code, from a checkout, in its own process.

    python benchmarks/official_side.py CHECKOUT FOLDER TASK

Reads `FOLDER/given.pt` and writes `FOLDER/TASK.pt`. It imports nothing of memplan, so that an
environment of the official code's own will do, and it holds none of that code: it calls it.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not hasattr(np, "trapz"):  # used there, removed in NumPy 2.4
    setattr(np, "trapz", np.trapezoid)  # noqa: B010


class _FixedLoader:
    """Batches that were made beforehand, epoch after epoch, as the official loader gives them."""

    num_workers = 0

    def __init__(self, epochs: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> None:
        self._epochs = iter(epochs)
        self._length = len(epochs[0])

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str], None]]:
        for images, targets in next(self._epochs):
            yield images, targets, [""] * len(images), None


class _NoLoggers:
    remote_dataset = None

    def __init__(self, *_: Any) -> None:
        pass


def train(given: dict[str, Any]) -> dict[str, Any]:
    """Run the official training loop on given batches and return what it did, step by step."""
    import train_dual as official  # type: ignore[import-not-found]

    found: dict[str, Any] = {"losses": [], "rates": [], "states": []}
    kept: dict[str, Any] = {}

    class Loss(official.ComputeLoss):  # type: ignore[misc, name-defined]
        def __call__(self, *arguments: Any) -> Any:
            result = super().__call__(*arguments)
            found["losses"].append(result[1].tolist())
            return result

    class Average(official.ModelEMA):  # type: ignore[misc, name-defined]
        def __init__(self, model: Any, *arguments: Any) -> None:
            super().__init__(model, *arguments)
            kept.update(average=self.ema)
            self._keep(model)

        def update(self, model: Any) -> None:
            super().update(model)
            self._keep(model)

        def _keep(self, model: Any) -> None:
            if given["keeps_states"]:
                state = model.state_dict().items()
                found["states"].append({name: value.clone() for name, value in state})

    make_optimizer = official.smart_optimizer

    def optimizer_of(*arguments: Any) -> Any:
        optimizer = make_optimizer(*arguments)
        optimizer.register_step_pre_hook(
            lambda one, *_: found["rates"].append(_rates(one, len(found["losses"])))
        )
        return optimizer

    labels = types.SimpleNamespace(labels=[np.zeros((1, 5), np.float32)], n=1, mosaic=True)
    loaders = iter([_FixedLoader(given["batches"]), _FixedLoader([[]])])
    official.create_dataloader = lambda *_, **__: (next(loaders), labels)
    official.ComputeLoss, official.ModelEMA = Loss, Average
    official.smart_optimizer = optimizer_of
    official.Loggers = _NoLoggers
    official.check_dataset = lambda _: {
        "train": "", "val": "", "nc": given["classes"], "names": given["names"],
    }  # fmt: skip
    official.validate.run = lambda *_, **__: ((0,) * 7, np.zeros(given["classes"]), None)
    sys.argv = ["train_dual.py", "--weights", given["weights"], "--cfg", "", "--noplots",
                "--noval", "--nosave", "--device", "cpu", "--epochs", str(given["epochs"]),
                "--batch-size", str(given["batch"]), "--imgsz", str(given["side"]),
                *given["options"]]  # fmt: skip
    options = official.parse_opt()
    options.save_dir = given["folder"]
    options.data = ""
    official.train(dict(given["hyp"]), options, torch.device("cpu"), official.Callbacks())
    found["average"] = kept["average"].state_dict()
    return found


def _rates(optimizer: Any, batches: int) -> list[float]:
    """Return the batches so far, rates of biases and weights, momentum and largest decay."""
    biases, *rest = optimizer.param_groups  # the official optimizer's first group
    decay = max(group["weight_decay"] for group in optimizer.param_groups)
    numbers = batches, biases["lr"], rest[0]["lr"], biases["momentum"], decay
    return [float(number) for number in numbers]


def augment(given: dict[str, Any]) -> dict[str, Any]:
    """Return statistics of augmented training images, a row an image; see `statistics_of`."""
    import random

    from utils.dataloaders import LoadImagesAndLabels  # type: ignore[import-not-found]

    sys.path.append(str(Path(__file__).parent))
    from official_statistics import statistics_of  # type: ignore[import-not-found]

    random.seed(given["seed"])
    np.random.seed(given["seed"])  # noqa: NPY002 - what the official code draws from
    images = LoadImagesAndLabels(
        given["images"], given["side"], augment=True, hyp=given["hyp"], stride=32
    )
    rows = []
    for number in range(given["draws"]):
        pixels, targets, _, _ = images[number % len(images)]
        rows.append(statistics_of(pixels.numpy(), targets[:, 1:].numpy()))
    return {"rows": torch.tensor(rows, dtype=torch.float64)}


def draw_speed(given: dict[str, Any]) -> dict[str, Any]:
    """Return the processor's seconds an image of a training batch takes, collation included."""
    import time

    import cv2
    from utils.dataloaders import LoadImagesAndLabels

    cv2.setNumThreads(0)
    images = LoadImagesAndLabels(
        given["images"], given["side"], augment=True, hyp=given["hyp"], stride=32
    )
    seconds = []
    for _ in range(given["repeats"] + 1):  # the first warms up
        start = time.process_time()
        for first in range(0, given["count"], given["batch"]):
            numbers = range(first, first + given["batch"])
            LoadImagesAndLabels.collate_fn([images[number % len(images)] for number in numbers])
        seconds.append((time.process_time() - start) / given["count"])
    return {"seconds": torch.tensor(seconds[1:], dtype=torch.float64)}


def evaluate(given: dict[str, Any]) -> dict[str, Any]:
    """Match and score given detections as the checkout's `val.py` does, on its own functions."""
    from utils.metrics import ap_per_class  # type: ignore[import-not-found]
    from val import process_batch  # type: ignore[import-not-found]

    overlaps = torch.linspace(0.5, 0.95, 10)
    kept = [
        (process_batch(rows, labels, overlaps), rows[:, 4], rows[:, 5], labels[:, 0])
        for rows, labels in zip(given["detections"], given["labels"], strict=True)
    ]
    columns = [torch.cat(column, 0).numpy() for column in zip(*kept, strict=True)]
    names = {label: str(label) for label in range(given["classes"])}
    _, _, precision, recall, _, ap, _ = ap_per_class(*columns, names=names)
    return {
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "mAP50": float(ap[:, 0].mean()),
        "mAP50-95": float(ap.mean()),
    }


def suppress(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the official suppression leaves of given predictions, image after image."""
    from utils.general import non_max_suppression  # type: ignore[import-not-found]

    kept = non_max_suppression(
        given["predictions"].clone(),
        conf_thres=given["confidence"],
        iou_thres=given["iou"],
        multi_label=given["multi_label"],
        max_det=given["most"],
    )
    return {"kept": [rows.float() for rows in kept]}


def load(given: dict[str, Any]) -> dict[str, Any]:
    """Return outputs of checkpoints that the official loader read, unfused and fused."""
    from models.experimental import attempt_load  # type: ignore[import-not-found]

    found: dict[str, Any] = {}
    for name, path in given["files"].items():
        outputs = []
        for fuses in (False, True):
            model = attempt_load(path, device="cpu", fuse=fuses)
            with torch.no_grad():
                decoded = model(given["images"])[0]
            outputs.append(decoded[-1] if isinstance(decoded, list) else decoded)
        found[name] = {"outputs": torch.stack(outputs), "names": dict(model.names)}
    return found


def script(given: dict[str, Any]) -> dict[str, Any]:
    """Run a script of the checkout as its main program."""
    import runpy

    sys.argv = list(given["arguments"])
    runpy.run_path(sys.argv[0], run_name="__main__")
    return {}


_TASKS = {
    one.__name__: one for one in (train, augment, draw_speed, evaluate, suppress, load, script)
}


def main() -> None:
    """Run one task."""
    checkout, folder, task = sys.argv[1:]
    sys.path[0] = checkout  # instead of this file's folder
    os.chdir(checkout)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    given = torch.load(Path(folder) / "given.pt", weights_only=True)
    torch.save(_TASKS[task](given), Path(folder) / f"{task}.pt")


if __name__ == "__main__":
    main()
