"""Public logs of Ultralytics trainings; of its networks those that are described here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.card_truth.cards import read
from benchmarks.card_truth.replays import ONE_BY_ONE, predicted, replays
from benchmarks.card_truth.row import Row
from benchmarks.card_truth.yolov8 import YoloV8n, YoloV8nClassifier
from memplan.device import catalogue
from memplan.device.life import Life
from memplan.planner.crowd import Crowd
from memplan.spec import StepSpec
from memplan.trace.record import record
from memplan.units import GIB
from memplan.workload import OptimizerSettings, Workload

LOGS = "Ultralytics logs"
# Objects an image: the middle of the boxes a batch that the log printed, over its 16 images.
_OBJECTS = {"8.4.131": 16, "8.1.0": 27}
_NOMINAL = 64
_UNITS = {"GiB": GIB, "GB(1e9)": 10**9}


def ultralytics_logs() -> Iterator[Row]:
    """Yield first epochs (training only) and whole lives."""
    for cells in read("ultralytics_logs.csv"):
        workload = _workload(cells)
        about: dict[str, Any] = {
            "kind": LOGS,
            "card": cells["card"].removeprefix("NVIDIA ").removeprefix("Tesla "),
            "figure": "reserved",
            "torch": cells["torch"],
            "source": cells["source"],
        }
        unit = _UNITS[cells["unit"]]
        batch = int(cells["batch"])
        name = f"{cells['model']}, {cells['img']} px, batch {batch}, {float(cells['nc']):.0f} "
        name += f"classes ({cells['ultralytics']})"
        crowded = workload is not None and workload.objects_per_image > 0
        tape = None
        if workload is not None:
            spec = StepSpec(optimizer="AdamW", deterministic=True)
            tape = record(workload, batch, spec, OptimizerSettings(momentum=0.9))
        for column, validates in (("gpu_mem_first_epoch", False), ("gpu_mem_max", True)):
            row = {
                **about,
                "case": f"{name}, {'with validation' if validates else 'first epoch'}",
                "measured_bytes": round(float(cells[column]) * unit),
            }
            if workload is None or tape is None:
                yield Row(**row, remark="this network and its loss are not described here")
                continue
            card = catalogue.card("a100-40gb" if "A100" in cells["card"] else "t4")
            life = Life(accumulates=round(_NOMINAL / batch) > 1, validates=validates)
            objects = Crowd.around(workload.objects_per_image).steps(batch) if crowded else ()
            peaks = replays(tape, card, life, objects=objects)
            found = [one.reserved_peak_bytes for one in peaks]
            yield Row(**row, **predicted(found), open_because=ONE_BY_ONE)


def _workload(cells: dict[str, str]) -> Workload | None:
    """Return what a row trained; None where its network is not described here."""
    classes, side = round(float(cells["nc"])), int(cells["img"])
    if cells["model"] == "yolov8n":
        return YoloV8n(
            num_classes=classes,
            image_size=side,
            objects_per_image=_OBJECTS[cells["ultralytics"]],
        )
    if cells["model"] == "yolov8n-cls":
        return YoloV8nClassifier(num_classes=classes, image_size=side)
    return None
