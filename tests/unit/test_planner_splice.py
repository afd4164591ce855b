"""Tapes put together from two recordings are those of a recording of that very choice."""

import itertools

import numpy as np
import pytest
import torch

from memplan import tape as tapes
from memplan.device import catalogue
from memplan.device.life import Life, Program
from memplan.device.replay import Simulator, replay
from memplan.evaluation.throughput import operator_seconds
from memplan.planner.recompute import NUM_RUNGS, RecomputeLadder, kept_bytes, parts_of_large
from memplan.planner.splice import Splicer
from memplan.spec import StepSpec
from memplan.trace.record import record
from memplan.workload import Workload

CARD = catalogue.card("rtx-3090")
SIDE = 32


class Block(torch.nn.Module):
    """Two branches, summed: what comes in is read twice."""

    def __init__(self, channels):
        super().__init__()
        self.left = torch.nn.Sequential(
            torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.SiLU(inplace=True),
        )
        self.right = torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 1), torch.nn.ReLU())

    def forward(self, x):
        """Return a map of the input's shape."""
        return self.left(x) + self.right(x)


class Branching(Workload):
    """Blocks that feed one another and, over a concatenation, each other's followers."""

    name = "branching"
    image_size = SIDE

    def build_model(self):
        """Return the model."""

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
                self.a = Block(8)
                self.b = Block(8)
                self.c = Block(16)
                self.head = torch.nn.Conv2d(16, 1, 1)

            def forward(self, x):
                x = self.stem(x)
                a = self.a(x)
                b = self.b(a)
                return self.head(self.c(torch.cat((a, b), 1)))

        return Model()

    def make_batch(self, micro_batch_size):
        """Return images alone."""
        return {"images": torch.zeros(micro_batch_size, 3, SIDE, SIDE)}

    def compute_loss(self, model, batch):
        """Return the sum of squares of the outputs."""
        loss = model(batch["images"]).square().sum()
        return loss, loss.detach()[None]


BLOCKS = ("a", "b", "c")
PARTS = ("a.left", "a.right", "b.left", "b.right", "c.left", "c.right")


def recorded(paths, batch=4):
    """Return the tape in which some paths are recomputed."""
    settings = StepSpec(recompute=paths, memory_format="channels-last")
    return record(Branching(), batch, settings)


@pytest.fixture(scope="module")
def splicer():
    """What recordings of nothing, of blocks and of their parts allow."""
    return Splicer(recorded(()), [(recorded(BLOCKS), BLOCKS), (recorded(PARTS), PARTS)])


def live(tape):
    """Return the bytes live after each event of a life."""
    program = Program(tape, Life(accumulates=True))
    device = Simulator(CARD).device_bytes(tape.convolutions, tape.launches)
    sizes = program.sizes(tape.events.requested_bytes, device)
    return program.live_by_category(sizes).sum(axis=0)


SUBSETS = [subset for count in range(4) for subset in itertools.combinations(BLOCKS, count)] + [
    ("a", "b.left"),
    ("a.right", "b.left", "c"),
    ("a.left", "c.left", "c.right"),
    PARTS,
]


@pytest.mark.parametrize("paths", SUBSETS, ids=lambda paths: "+".join(paths) or "none")
def test_a_spliced_tape_is_that_of_a_recording(splicer, paths):
    """Operators, peaks and the number of events are those of a step that recomputes just that."""
    real, made = recorded(paths), splicer.tape(paths)

    assert len(real) == len(made)
    names = [[tape.operator_names[name] for name in tape.operators.name] for tape in (real, made)]
    assert names[0] == names[1]
    assert real.operators.flops.tolist() == made.operators.flops.tolist()
    assert live(real).max() == live(made).max()
    peaks = [replay(tape, CARD) for tape in (real, made)]
    assert peaks[0].reserved_peak_bytes == peaks[1].reserved_peak_bytes
    assert set(paths) == set(made.description.spec.recompute)


@pytest.mark.parametrize("paths", [(), BLOCKS, ("a", "b.left"), PARTS], ids=len)
def test_recordings_at_one_batch_serve_another(splicer, paths):
    """With a plain tape of another batch, what recordings of one batch show holds there too."""
    real = recorded(paths, batch=7)
    made = splicer.moved_to(recorded((), batch=7)).tape(paths)

    assert len(real) == len(made)
    assert live(real).max() == live(made).max()
    assert real.operators.flops.tolist() == made.operators.flops.tolist()
    assert real.operators.moved_bytes.tolist() == made.operators.moved_bytes.tolist()
    assert replay(real, CARD).reserved_peak_bytes == replay(made, CARD).reserved_peak_bytes


def test_another_structure_cannot_be_moved_to(splicer):
    """A plain tape of other operators is no other batch of the same step."""
    other = record(Branching(), 4, StepSpec(precision="fp32"))

    assert None is splicer.moved_to(other)


def test_a_part_excludes_its_block(splicer):
    """A block and what lies inside it are never both chosen."""
    pairs = {tuple(splicer.paths[index] for index in pair) for pair in splicer.exclusive}

    assert {("a", "a.left"), ("a", "a.right"), ("c", "c.right")} <= pairs
    assert 6 == len(pairs)


def test_recordings_that_differ_offer_nothing():
    """What cannot be matched operator by operator is no choice."""
    splicer = Splicer(recorded(()), [(recorded(BLOCKS, batch=5), BLOCKS)])

    assert () == splicer.paths


@pytest.fixture(scope="module")
def ladder(splicer):
    """The rungs of the branching network."""
    simulator = Simulator(CARD)

    def answers(tape):
        return simulator.device_bytes(tape.convolutions, tape.launches)

    return RecomputeLadder(
        splicer,
        lambda tape: operator_seconds(tape, CARD, answers(tape).convolutions),
        lambda tape: answers(tape).filled(tape.events.requested_bytes, tape.events),
    )


def test_memory_at_every_point_adds_up(splicer, ladder):
    """The modelled peak differs from the replayed one by what no choice changes."""
    choices = ladder.choices
    apart = set()
    for paths in SUBSETS:
        flags = np.array([path in paths for path in splicer.paths])
        made = live(splicer.tape(paths))
        apart.add(int(made.max() - choices.peak_bytes(flags)))

    assert max(apart) - min(apart) <= 0.1 * choices.peak_bytes(choices.nothing)


def test_rungs_save_more_and_cost_more(splicer, ladder):
    """Down the ladder, memory falls and time rises; the first recomputes nothing."""
    chosen = [ladder.chosen(rung) for rung in range(NUM_RUNGS + 1)]
    flags = [np.array([p in one for p in splicer.paths]) for one in chosen]
    costs = [ladder.choices.cost(one) for one in flags]
    peaks = [ladder.choices.peak_bytes(one) for one in flags]

    assert () == chosen[0]
    assert sorted(costs) == costs
    assert sorted(peaks, reverse=True) == peaks
    assert ladder.choices.peak_bytes(ladder.choices.least_memory()) == peaks[-1]


def test_seconds_are_those_of_the_repeated_forward(splicer, ladder):
    """Recomputing everything takes as long as the operators that it repeats."""
    flags = np.array([path in BLOCKS for path in splicer.paths])
    simulator = Simulator(CARD)

    def seconds(tape):
        device = simulator.device_bytes(tape.convolutions, tape.launches)
        in_step = tape.operators.section == tapes.SECTIONS.index("micro_batch")
        return operator_seconds(tape, CARD, device.convolutions)[in_step].sum()

    extra = seconds(splicer.tape(BLOCKS)) - seconds(splicer.plain)
    assert pytest.approx(extra) == ladder.choices.cost(flags)


def test_parts_of_large_blocks_are_found(splicer):
    """Parts of several modules with a convolution; lone layers and small blocks have none."""
    plain = splicer.plain

    assert PARTS == parts_of_large(plain, BLOCKS)
    kept = kept_bytes(plain, BLOCKS)
    assert kept["c"] > max(kept["a"], kept["b"]) > 0
