"""What operators ask of the allocator, one by one: our rules beside PyTorch's own host code.

Every operator of `operator_cases` is recorded as a training step's are, and run by the unmodified
PyTorch on phantom cards. Blocks taken and given back must be the same, in order, to the byte. This
is not a measurement: no card is involved.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.operator_cases import FAMILIES
from benchmarks.phantom_operators_child import run_operators
from benchmarks.phantom_sizes import noted_sizes
from memplan import tape as tapes
from memplan.advise.question import versions
from memplan.device import catalogue
from memplan.device.card import Card
from memplan.device.replay import Simulator
from memplan.phantom.child import PhantomChild
from memplan.spec import StepSpec
from memplan.trace.dynamic import DynamicRecorder
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.record import no_garbage_collection
from memplan.workload import Batch, Choice, Workload

CARDS = ("t4", "a100-80gb", "rtx-3090", "rtx-4090", "h100-80gb", "b200", "rtx-5090")
_SELECTED = 7  # rows that every mask is said to have
_IMPORTS = ("torch", "torchvision", "benchmarks.phantom_operators_child")
Sizes = list[int]
"""Bytes of blocks taken, negative for those given back, in order."""


class _Nothing(Workload):
    """States how many rows masks have, and nothing else."""

    name = "operators"
    states_sizes = True

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Identity()

    def make_batch(self, _: int) -> Batch:  # type: ignore[override]
        return {}

    def compute_loss(self, model: torch.nn.Module, batch: Batch) -> Any:
        raise NotImplementedError

    def num_chosen(self, _: Choice) -> int:  # type: ignore[override]
        return _SELECTED


@dataclass(frozen=True)
class Recorded:
    """An operator as it was recorded."""

    family: str
    name: str
    events: slice
    """Where they stand on the tape."""
    told: list[tuple[str, float]]


@torch.no_grad()
def record() -> tuple[list[Recorded], tapes.Tape]:
    """Return every operator, and the tape of all."""
    found = []
    with no_garbage_collection(), fake_cuda() as mode:
        recorder = DynamicRecorder(DEVICE, mode, _Nothing(), 1)
        with recorder:
            recorder.begin("micro_batch")
            for family in FAMILIES:
                for name, run in family():
                    before = recorder.num_events
                    with noted_sizes() as told:
                        kept = run()
                    events = slice(before, recorder.num_events)
                    # Frees are put in order between allocations: what comes now stays apart.
                    torch.empty(1, device=DEVICE)
                    del kept
                    found.append(Recorded(family.__name__, name, events, told))
        description = tapes.Description(
            workload=_Nothing.name,
            micro_batch_size=1,
            image_size=1,
            spec=StepSpec(),
            cublas_workspace_config=None,
            parameters=0,
            objects_per_image=0,
            crowded_objects_per_image=0,
            origin="predicted",
            versions=versions(),
            unknown_operators=dict(recorder.unknown),
        )
        return found, recorder.finish(description)


def sizes_on(card: Card, recorded: list[Recorded], tape: tapes.Tape) -> Iterator[Sizes]:
    """Yield what each operator asks for on a card; workspaces of matrix products left out."""
    device = Simulator(card).device_bytes((), tape.launches)
    events = tape.events
    columns = (events.kind, events.block, events.requested_bytes, events.asks, events.about)
    of_block: dict[int, int] = {}
    for one in recorded:
        sizes = []
        rows = zip(*(column[one.events].tolist() for column in columns), strict=True)
        for kind, block, num_bytes, asks, about in rows:
            if asks in (tapes.MATRIX_WORKSPACE, tapes.LIGHT_MATRIX_WORKSPACE):
                continue
            if kind == tapes.FREE:
                sizes.append(-of_block.get(block, 0))
                continue
            size = num_bytes if asks == tapes.KNOWN else int(device.launches[asks, about])
            of_block[block] = size
            sizes.append(size)
        yield [size for size in sizes if size]


def run(cards: tuple[str, ...]) -> Iterator[tuple[str, str, str, Sizes, Sizes]]:
    """Yield card, family, name, predicted and phantom sizes of every operator on every card."""
    recorded, tape = record()
    for name in cards:
        card = catalogue.card(name)
        with PhantomChild(card, imports=_IMPORTS) as child, tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "sizes.json"
            failed = child.call(run_operators, {"told": [one.told for one in recorded]}, out)
            phantom = json.loads(out.read_text())
        for what, why in failed.items():
            click.echo(f"{name}: {what} failed: {why}", err=True)
        for one, mine, its in zip(recorded, sizes_on(card, recorded, tape), phantom, strict=True):
            yield name, one.family, one.name, mine, its


def _sorted_frees(sizes: Sizes) -> Sizes:
    from benchmarks.gpu.alignment import Event, sorted_frees

    return [event.size for event in sorted_frees([Event(size) for size in sizes])]


@click.command()
@click.option("--card", "cards", multiple=True, metavar="NAME", help="Instead of one of each.")
def main(cards: tuple[str, ...]) -> None:
    """Compare every operator and publish the table."""
    for card, family, name, mine, its in run(cards or CARDS):
        if _sorted_frees(mine) != _sorted_frees(its):
            click.echo(f"{card} {family}: {name}\n   mine {mine}\n    its {its}")


if __name__ == "__main__":
    main()
