"""What operators ask of the allocator, one by one: our rules beside PyTorch's own host code.

Every operator of `operator_cases` is recorded as a training step's are, and run by the unmodified
PyTorch on phantom cards. Blocks taken and given back must be the same, in order, to the byte. This
is not a measurement: no card is involved.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.common import publish
from benchmarks.gpu.alignment import Event, sorted_frees
from benchmarks.operator_cases import FAMILIES, Cases
from benchmarks.phantom_life import Told
from benchmarks.phantom_operators_child import run_operators
from benchmarks.phantom_sizes import noted_sizes
from benchmarks.phantom_truth import CARDS
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
    told: list[Told]


@torch.no_grad()
def record(family: Callable[[], Cases]) -> tuple[list[Recorded], tapes.Tape]:
    """Return a family's operators, and the tape of all."""
    found = []
    with no_garbage_collection(), warnings.catch_warnings(), fake_cuda() as mode:
        # What is not deterministic, or will be called otherwise, is said to who trains.
        warnings.simplefilter("ignore")
        recorder = DynamicRecorder(DEVICE, mode, _Nothing(), 1)
        with recorder:
            recorder.begin("micro_batch")
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


@dataclass(frozen=True)
class Compared:
    """An operator on a card, predicted and as PyTorch's own host code runs it."""

    card: str
    family: str
    name: str
    predicted: Sizes
    phantom: Sizes
    """Frees between two allocations sorted, as their order changes nothing."""

    @property
    def is_alike(self) -> bool:
        """Whether both take and give back the same blocks."""
        mine = sorted_frees([Event(size) for size in self.predicted])
        return [event.size for event in mine] == self.phantom


def run(cards: Sequence[str]) -> Iterator[Compared]:
    """Yield every operator on every card."""
    families = [record(family) for family in FAMILIES]
    told = [one.told for recorded, _ in families for one in recorded]
    for name in cards:
        card = catalogue.card(name)
        with PhantomChild(card, imports=_IMPORTS) as child, tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "sizes.json"
            failed = child.call(run_operators, {"told": told}, out)
            phantom = iter(json.loads(out.read_text()))
        for what, why in failed.items():
            click.echo(f"{name}: {what} failed: {why}", err=True)
        for recorded, tape in families:
            for one, mine in zip(recorded, sizes_on(card, recorded, tape), strict=True):
                yield Compared(name, one.family, one.name, mine, next(phantom))


def _table(found: Iterable[Compared]) -> tuple[list[tuple[str, ...]], dict[str, list[str]]]:
    """Return a row a family with the operators alike on each card, and which differ where."""
    alike: dict[str, Counter[str]] = defaultdict(Counter)
    totals: Counter[tuple[str, str]] = Counter()
    differs: dict[str, list[str]] = defaultdict(list)
    for one in found:
        alike[one.family][one.card] += one.is_alike
        totals[one.family, one.card] += 1
        if not one.is_alike:
            differs[f"{one.family}: {one.name}"].append(one.card)
    rows = [
        (family, *(f"{count[card]}/{totals[family, card]}" for card in count))
        for family, count in alike.items()
    ]
    return rows, differs


@click.command()
@click.option("--card", "cards", multiple=True, metavar="NAME", help="Tell of these, publish not.")
def main(cards: tuple[str, ...]) -> None:
    """Compare every operator and publish the table."""
    found = []
    for one in run(cards or CARDS):
        found.append(one)
        if not one.is_alike:
            click.echo(f"{one.card} {one.family}: {one.name}")
            click.echo(f"  predicted {one.predicted}\n  phantom   {one.phantom}")
    rows, differs = _table(found)
    told = "; ".join(f"{name} ({len(where)} cards)" for name, where in differs.items())
    num_alike = sum(one.is_alike for one in found)
    click.echo(f"{num_alike} of {len(found)} alike", err=True)
    if not cards:
        publish(
            "phantom_operators",
            "Operators one by one, beside PyTorch's own host code on phantom cards",
            ("Family", *CARDS),
            rows,
            [
                "The right-hand side is PyTorch's own host code: no card, and no measurement.",
                f"Alike, blocks taken and given back to the byte: {num_alike} of {len(found)}.",
                f"Different: {told or 'none'}.",
            ],
        )


if __name__ == "__main__":
    main()
