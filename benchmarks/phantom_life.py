"""One life on a phantom card beside its prediction: both lists of blocks, and where they part.

What runs on the phantom card is PyTorch's own host code, kernels left out; it is no measurement.
For convolutions the agreement says little: PyTorch on the phantom and the prediction ask the same
cuDNN planner about the same described card. So workspaces are counted apart, those of convolutions
with a window of one pixel once more: for them cuDNN plans otherwise where it finds no driver at
all, and what a real driver's answers would change no phantom can tell.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.alignment import Alignment, Difference, Event, align, predicted_events
from benchmarks.gpu.cases import Case
from benchmarks.gpu.predict import PredictedLife
from memplan.device import catalogue
from memplan.device.card import Card
from memplan.device.life import Life, Program
from memplan.phantom.child import PhantomChild
from memplan.tape import Tape

# What the child imports before the first life.
IMPORTS = (
    "torch", "torchvision", "memplan.trace.measure", "benchmarks.gpu.alignment",
    "benchmarks.phantom_sizes", "memplan_models.yolov9",
)  # fmt: skip
Told = tuple[str, float]
"""An operator whose result's size follows from values, and what it was told."""
PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes", "num_alloc_retries")


def run_life(*, case: dict[str, Any], card: str, told: Sequence[Told], out: Path) -> dict[str, Any]:
    """Run a case's life in this process, a phantom card beneath it, and keep its blocks' sizes.

    Args:
        case: the fields of a `Case`.
        card: its name in the catalogue.
        told: sizes that follow from values, as the recording was told.
        out: gets the signed sizes of `benchmarks.gpu.alignment`, int64 `[events]`, by numpy.
    """
    import torch

    from benchmarks.gpu.alignment import measured_events
    from benchmarks.phantom_sizes import tell
    from memplan.trace.measure import measure

    one = Case(**case)
    question = one.question(catalogue.card(card))
    sizes = tell(question.made, told) if question.made.states_sizes else None
    if one.allocator:
        torch.cuda.memory._set_allocator_settings(one.allocator)  # noqa: SLF001 - the only door
    found, snapshot = measure(
        question.made,
        one.micro_batch_size,
        question.step_spec,
        torch.device("cuda", 0),
        accumulation_steps=one.accumulation_steps,
        outside=False,
    )
    assert snapshot is not None
    if sizes is not None and not found.out_of_memory:
        sizes.end()
    sizes = [event.size for event in measured_events(snapshot.trace)]
    with out.open("wb") as file:
        np.save(file, np.array(sizes, dtype=np.int64))
    return {**{name: getattr(found, name) for name in PEAKS}, "oom": found.out_of_memory}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many predicted events of one sort have their twin."""

    num_events: int
    num_alike: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A predicted life beside the one that PyTorch's code lived on the phantom card."""

    case: str
    card: str
    compute_capability: str
    predicted: dict[str, int]
    """By the names in `PEAKS`."""
    phantom: dict[str, int]
    oom: str
    """PyTorch's message where the life ended early."""
    num_predicted: int
    num_phantom: int
    num_alike: int
    one_pixel: Agreement
    """Workspaces of convolutions with a window of one pixel."""
    convolutions: Agreement
    """Workspaces of all others."""
    parted: dict[str, int]
    """How often the lists part at the place of each predicted operator."""
    differences: tuple[tuple[Difference, int], ...] = ()
    """Each different difference and how often it occurs; not kept in files."""

    @property
    def is_equal(self) -> bool:
        """Whether allocated and reserved bytes are the same to the byte."""
        names = ("allocated_peak_bytes", "reserved_peak_bytes")
        return all(self.predicted[name] == self.phantom[name] for name in names)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(replace(self, differences=()))
        del values["differences"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Comparison:
        """Return what `to_json` gave, the differences' sizes left out."""
        more = {name: Agreement(**values[name]) for name in ("one_pixel", "convolutions")}
        return cls(**{**values, **more})


def predicted_life(case: Case, card: Card, tape: Tape) -> PredictedLife:
    """Return a recorded case's life on a card."""
    (simulator,) = case.question(card).simulators()
    program = Program(tape, Life(accumulates=case.accumulation_steps > 1))
    device = simulator.device_bytes(tape.convolutions, tape.launches)
    sizes = program.sizes(tape.events.requested_bytes, device)
    return PredictedLife(tape, program, sizes, device, simulator)


def compare(
    case: Case, life: PredictedLife, child: PhantomChild, told: Sequence[Told] = ()
) -> Comparison:
    """Return how a predicted life compares with the one on the child's card.

    Args:
        case: what lives.
        life: as predicted.
        child: on the card.
        told: sizes that follow from values, as the recording was told.

    Raises:
        MemplanError: the life fails there for another reason than memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sizes.npy"
        arguments = {"case": asdict(case), "card": child.card.name, "told": list(told)}
        phantom = child.call(run_life, arguments, out)
        sizes = np.load(out, allow_pickle=False).tolist()
    predicted = predicted_events(life)
    found = align(predicted, [Event(size) for size in sizes])
    peaks = life.peaks()
    oom = phantom.pop("oom")
    one_pixel, others = _workspaces(life, predicted, found)
    return Comparison(
        case=case.name,
        card=child.card.name,
        compute_capability="{}.{}".format(*child.card.compute_capability),
        predicted={name: int(getattr(peaks, name)) for name in PEAKS},
        phantom=phantom,
        oom=oom,
        num_predicted=found.num_predicted,
        num_phantom=found.num_measured,
        num_alike=found.num_alike,
        one_pixel=one_pixel,
        convolutions=others,
        parted=dict(Counter(one.operator for one in found.differences)),
        differences=tuple(found.grouped()),
    )


def _workspaces(
    life: PredictedLife, predicted: Sequence[Event], found: Alignment
) -> tuple[Agreement, Agreement]:
    """Return how the workspaces agree of convolutions with one pixel's window, and of others."""
    unlike = np.zeros(len(predicted), dtype=bool)
    for one in found.differences:
        # Blocks in another order are a difference, but workspaces of the same size are no such.
        for row in range(one.at, one.at + len(one.predicted)):
            unlike[row] = predicted[row].size not in one.measured
    if found.lost_at is not None:
        unlike[found.lost_at :] = True
    rows: tuple[list[int], list[int]] = ([], [])
    for row, event in enumerate(predicted):
        if event.convolution is not None and event.size > 0:
            window = life.tape.convolutions[event.convolution].weight[2:]
            rows[set(window) != {1}].append(row)
    one_pixel, others = (
        Agreement(num_events=len(some), num_alike=int((~unlike[some]).sum())) for some in rows
    )
    return one_pixel, others
