"""Rows that other benchmarks predict already: YOLOv9 logs and the xMem study's records."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from benchmarks import accuracy_logs, accuracy_xmem
from benchmarks.card_truth.replays import ONE_BY_ONE, predicted, replays
from benchmarks.card_truth.row import Row
from benchmarks.card_truth.versions import cudnn_of
from benchmarks.xmem_step import TORCH_VERSION

FIRST_EPOCH = "YOLOv9 logs: first epoch, training only"
WHOLE_LIFE = "YOLOv9 logs: whole life, with validation"
XMEM = "The xMem study"


def yolov9_logs() -> Iterator[Row]:
    """Yield what public logs of the official YOLOv9 code printed, first epochs and whole lives."""
    with accuracy_logs.LOGS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for cells in rows:
        tape, card = accuracy_logs.recorded(cells)
        figures = (cells["gpu_mem_gb_first_epoch"], cells["gpu_mem_gb_max"])
        for kind, figure, life in zip(
            (FIRST_EPOCH, WHOLE_LIFE), figures, accuracy_logs.lives(cells), strict=True
        ):
            yield Row(
                kind=kind,
                case=_case(cells),
                card=cells["gpu"].removeprefix("NVIDIA ").removeprefix("Tesla "),
                figure="reserved",
                measured_bytes=round(float(figure) * 1e9),
                **predicted([one.reserved_peak_bytes for one in replays(tape, card, life)]),
                open_because=ONE_BY_ONE,
                torch=cells["torch_version"],
                cudnn=cudnn_of(cells["torch_version"]),
                source=cells["source_url"],
            )


def _case(cells: dict[str, str]) -> str:
    name = cells["cfg"].removesuffix(".yaml")
    return f"{name}, {cells['imgsz']} px, batch {cells['batch']}, {cells['nc']} classes"


def xmem_records() -> Iterator[Row]:
    """Yield the xMem study's records; one that ran out has a verdict and no figure."""
    for record in accuracy_xmem.read_rows(accuracy_xmem.ROWS):
        done = accuracy_xmem.predict(record)
        found = [done.reserved_bytes, *done.open_bytes]
        about: dict[str, Any] = {"cudnn": "9.1.0"}
        if record.is_transformer:
            about |= {"remark": "128 tokens a text; the batches' lengths were not recorded"}
        yield Row(
            kind=XMEM,
            case=f"{record.model}, {record.optimizer}, batch {record.batch_size}",
            card=record.gpu.removeprefix("NVIDIA GeForce "),
            figure="device-used, less its first",
            measured_bytes=record.ground_bytes,
            ran_out=record.ran_out,
            predicted_to_run_out=done.runs_out,
            **predicted(found),
            open_because=ONE_BY_ONE,
            torch=TORCH_VERSION,
            source=f"Stone-ResearchLife/xMem {record.path}",
            **about,
        )
