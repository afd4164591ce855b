"""Device-used and allocated figures of classifiers on cards, from scripts that are public."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.card_truth.networks import ImageClassifier, SegmentNetwork, of_library
from benchmarks.card_truth.replays import BENCHMARK, ONE_BY_ONE, predicted, replays
from benchmarks.card_truth.row import Row
from memplan.device import catalogue
from memplan.device.context import outside_allocator, under_cuda
from memplan.device.distributed import DataParallel, ModelTensors, with_data_parallel
from memplan.device.life import Life
from memplan.errors import BadInputError
from memplan.spec import StepSpec
from memplan.tape import Tape
from memplan.trace.build import build
from memplan.trace.record import record
from memplan.units import MIB
from memplan.workload import OptimizerSettings

DATA = Path(__file__).parents[1] / "data" / "cards"
PLAIN = "Plain scripts on an A100"
TIMM = "timm's training script on an A100"
IN_DDP = "One rank of eight"
# `train.py` of timm smooths labels so, and takes SGD with this momentum, unless told otherwise.
_SMOOTHING = 0.1
_MOMENTUM = 0.9
_SIDE = 224
# The runs' torch is not stated. This is the one thing here that was chosen after the figures had
# been seen: with kernels loaded lazily every row would lie 1.4 GiB lower, at each batch alike.
_EAGER_CUDA = "11.6"


def read(name: str) -> list[dict[str, str]]:
    """Return the rows of a file of figures, cells as text."""
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain_scripts() -> Iterator[Row]:
    """Yield the scripts of the CARMA study: fp32 with TF32, Adam or AdamW, no benchmark mode."""
    card = catalogue.card("a100-40gb")
    for cells in read("a100_device_used.csv"):
        network = f"{cells['network']} ({cells['library']})"
        case = f"{network}, {cells['img']} px, batch {cells['batch']}"
        case += f", {cells['optimizer']} ({Path(cells['script']).stem})"
        row: dict[str, Any] = _of_a100(PLAIN, case, cells)
        try:
            tape = _plain_tape(cells)
        except BadInputError as error:
            yield Row(**row, remark=str(error))
            continue
        found = [one.device_used_peak_bytes for one in replays(tape, card)]
        yield Row(
            **row,
            **predicted(found, card.context_uncertainty_bytes),
            open_because=f"{ONE_BY_ONE}, context",
        )


def _plain_tape(cells: dict[str, str]) -> Tape:
    """Return a step of what a script of the CARMA study trains.

    Raises:
        BadInputError: the network's library is not installed.
    """
    network = cells["network"]
    make_model = of_library(cells["library"], network, int(cells["classes"]))
    workload = ImageClassifier(network, make_model, int(cells["img"]))
    spec = StepSpec(precision="fp32", optimizer=cells["optimizer"])
    return record(workload, int(cells["batch"]), spec, OptimizerSettings(momentum=0.9))


def timm_script() -> Iterator[Row]:
    """Yield the runs of timm's `train.py`: SGD, benchmark mode, images normalized on the card."""
    card = catalogue.card("a100-40gb")
    outside = outside_allocator(under_cuda(card, _EAGER_CUDA), environment={})
    for cells in read("a100_timm_device_used.csv"):
        network, batch = cells["network"], int(cells["batch"])
        row = _of_a100(TIMM, f"{network}, batch {batch}", cells)
        try:
            workload = ImageClassifier(
                network,
                of_library("timm", network, 1000),
                _SIDE,
                smoothing=_SMOOTHING,
                sends_bytes=True,
            )
        except BadInputError as error:
            yield Row(**row, remark=str(error))
            continue
        spec = StepSpec(precision="fp32", cudnn_benchmark=True)
        tape = record(workload, batch, spec, OptimizerSettings(momentum=_MOMENTUM))
        peaks = replays(tape, card)
        # The loader holds the next batch, as bytes and as float, on a stream of its own.
        next_batch = batch * 3 * _SIDE * _SIDE * (1 + 4)
        found = [one.reserved_peak_bytes + next_batch + outside.num_bytes for one in peaks]
        yield Row(
            **row,
            **predicted(found, outside.uncertainty_bytes),
            is_bound=True,
            open_because=f"{BENCHMARK}, context",
            remark=f"context as under CUDA {_EAGER_CUDA} and before",
        )


def _of_a100(kind: str, case: str, cells: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": kind,
        "case": case,
        "card": "A100 40 GB",
        "figure": "device-used",
        "measured_bytes": int(cells["device_used_mib"]) * MIB,
        "torch": cells["torch"],
        "source": cells["source"],
    }


def in_data_parallel() -> Iterator[Row]:
    """Yield mmaction2's temporal segment networks, one rank of eight, fp32 without TF32.

    The logs are of 2020 and 2021, so their torch is older than 2.0: `zero_grad` zeroed gradients in
    place, so that they live through the next forward pass, and cuBLAS had no workspace from the
    allocator. Source: pytorch pull requests 92731 and 83461, which changed that.
    """
    card = catalogue.card("v100-32gb")
    for cells in read("mmaction2_tsn.csv"):
        videos, segments = int(cells["videos"]), int(cells["segments"])
        row: dict[str, Any] = {
            "kind": IN_DDP,
            "case": f"{cells['config']}: {videos} x {segments} frames",
            "card": "V100 32 GB",
            "figure": "allocated",
            "measured_bytes": int(cells["allocated_mib"]) * MIB,
            "torch": "1.3 to 1.9",
            "cudnn": "7.6 to 8.0",
            "source": "open-mmlab/mmaction2 configs/recognition/tsn/README.md@e81f8b51",
            "remark": cells["remark"],
        }
        if cells["remark"]:
            yield Row(**row)
            continue
        workload = SegmentNetwork(
            int(cells["depth"]),
            segments,
            int(cells["channels"]),
            int(cells["classes"]),
            binary=cells["loss"] == "binary",
        )
        numbers = OptimizerSettings(momentum=0.9, weight_decay=1e-4)
        spec = StepSpec(precision="fp32", allow_tf32=False)
        tape = with_data_parallel(
            record(workload, videos, spec, numbers),
            ModelTensors.of(build(workload)),
            DataParallel(devices=8, broadcast_buffers=False),
        )
        # A micro-batch of an accumulation runs with the gradients of the one before in place.
        life = Life(accumulates=True, validates=False)
        peaks = replays(tape, card, life, has_matrix_workspace=False)
        newer = replays(tape, card, Life(validates=False))[0].allocated_peak_bytes
        row["remark"] = f"{newer / MIB:.0f} MiB by the rules of torch 2.11"
        yield Row(
            **row,
            **predicted([one.allocated_peak_bytes for one in peaks]),
            open_because=ONE_BY_ONE,
        )
