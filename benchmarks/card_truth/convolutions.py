"""Workspaces of single convolutions, as public recordings hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchmarks.card_truth.cards import read
from benchmarks.card_truth.row import Row
from memplan.convolution import ConvolutionProblem
from memplan.device import catalogue
from memplan.device.cudnn import WorkspaceOracle
from memplan.device.one_by_one import is_one_by_one

ORDINARY = "Convolution workspaces"
ONE_BY_ONE = "Convolution workspaces, 1x1"
# Where a source does not name its card, the answers for all of these are the prediction's range.
_CANDIDATES = ("rtx-3090", "t4", "v100-32gb", "a100-40gb", "rtx-2080-ti", "l40s")
# What stands for cards that the catalogue lacks: one of the same compute capability.
_STAND_INS = {"NVIDIA RTX PRO 5000 72GB Blackwell": "rtx-5090"}
# The caching allocator's quantum; a peak of allocated memory holds multiples of it.
_BLOCK = 512


def convolutions() -> Iterator[Row]:
    """Yield each convolution; those whose window is one position make a table of their own."""
    for cells in read("conv_workspaces.csv"):
        problem = _problem(cells)
        is_rounded = "rounded" in cells["measured_what"]
        is_named = "unknown" not in cells["card"]
        stand_in = _STAND_INS.get(cells["card"], "")
        names = (stand_in or cells["card"],) if is_named else _CANDIDATES
        cards = [catalogue.card(name) for name in names]
        found = [WorkspaceOracle(card).bytes(problem) for card in cards]
        if is_rounded:
            found = [-(-size // _BLOCK) * _BLOCK for size in found]
        yield Row(
            kind=ONE_BY_ONE if is_one_by_one(problem) else ORDINARY,
            case=f"{problem.kind} {problem.dtype} {cells['input']} by {cells['weight']}",
            card=cells["card"] if is_named else "not named",
            figure="allocated" if is_rounded else "requested",
            measured_bytes=int(cells["measured_bytes"]),
            predicted_bytes=found[0],
            low_bytes=min(found),
            high_bytes=max(found),
            open_because="" if is_named else f"the card: {', '.join(_CANDIDATES)}",
            torch=cells["torch"],
            cudnn=cells["cudnn"],
            source=cells["source"],
            remark=f"asked about the {cards[0].title}" if stand_in else cells["layout"],
        )


def _problem(cells: dict[str, str]) -> ConvolutionProblem:
    def numbers(name: str) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", cells[name]))

    stride = numbers("stride")
    return ConvolutionProblem(
        kind=cells["kind"],  # type: ignore[arg-type]
        dtype=cells["dtype"],  # type: ignore[arg-type]
        input=numbers("input"),
        weight=numbers("weight"),
        stride=stride,
        padding=numbers("padding"),
        dilation=(1,) * len(stride),
    )
