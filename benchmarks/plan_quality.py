"""How good the chosen plan is: beside the best of a grid, and beside what simpler rules choose.

    python -m benchmarks.plan_quality [--network NAME] [--card NAME]

Every figure is our own replay and roofline, for plan, grid and rules alike, so errors of either
move all of them together; real steps belong to `benchmarks/gpu`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import click
import numpy as np

from memplan import tape as tapes
from memplan.answers import PlanAnswer
from memplan.api import Question
from memplan.api.crowds import Crowds
from memplan.api.planning import plan_one, recordings_of
from memplan.device.life import Life, Program
from memplan.device.replay import Peaks, Simulator
from memplan.errors import MemplanError
from memplan.lean import Lean
from memplan.planner.evaluate import Evaluator
from memplan.planner.recompute import NUM_RUNGS
from memplan.planner.space import Budget, Space, fits_budget
from memplan.spec import MEMORY_FORMATS, Split, StepSpec
from memplan.tape import Tape
from memplan.units import GIB, three_digits

from .common import publish

# Name, and images of an optimizer step: enough that no card but the largest takes them at once.
NETWORKS = {
    "yolov9-s": 64,
    "yolov9-c": 64,
    "yolov9-e": 64,
    "torchvision:resnet50": 512,
    "torchvision:efficientnet_b3": 512,
    "torchvision:vit_b_16": 512,
    "torchvision:convnext_base": 512,
}
CARDS = ("rtx-3060-12gb", "rtx-4080", "rtx-3090", "a100-40gb", "a100-80gb")
RULES = ("autobatch 60%", "official 80%", "halving", "every block", "sqrt N")
_EXPANDABLE = "expandable_segments:True"
_SAFETY = 0.05
# What autobatch of YOLOv5 and its descendants tries. Source: its documentation, "AutoBatch".
_PROBED = (1, 2, 4, 8, 16)
_AIM_OF_BEST, _AIM_OVER_AUTOBATCH, _AIM_HALVED = 0.97, 1.2, 0.08


@dataclass(frozen=True)
class Way:
    """One way to run, and how fast it is; whether it fits is another matter."""

    settings: StepSpec
    split: Split
    rate: float


@dataclass(frozen=True)
class Ruled:
    """What a rule chose, and what comes of it."""

    split: Split
    rate: float
    """Images a second; 0 where it runs out of memory."""
    verdict: str
    """`fits`, `slow` where the cache is emptied again and again or convolutions lack workspace,
    or `oom`."""


class Network:
    """One network's recordings, shared by all cards, rules and the grid."""

    def __init__(self, name: str, effective_batch_size: int) -> None:
        self.question = Question(workload=name, gpus=(CARDS[0],))
        self.recordings = recordings_of(self.question)
        self.crowds = Crowds.of(self.question, None, None)
        self.base = self.question.step_spec
        self.effective = effective_batch_size
        self.blocks = self.question.all_blocks
        # Rules know divisors only; the grid knows all that a plan may take.
        self.splits = Space(
            base=self.base,
            effective_batch_size=effective_batch_size,
            nominal_batch_size=effective_batch_size,
            rounding_fraction=_SAFETY,
        ).splits()

    @cached_property
    def sqrt_blocks(self) -> tuple[str, ...]:
        """All blocks but the last of each of sqrt(N) groups (Chen et al. 2016)."""
        size = max(1, round(math.sqrt(len(self.blocks))))
        return tuple(b for i, b in enumerate(self.blocks) if (i + 1) % size)

    def recomputes(self) -> list[tuple[str, ...]]:
        """Return the grid's sets of recomputed blocks."""
        half = self.blocks[: len(self.blocks) // 2]
        several = [(), self.blocks, self.sqrt_blocks, self.blocks[::2], half, half[::2]]
        return list(dict.fromkeys(several))

    def grid(self) -> Iterator[StepSpec]:
        """Yield every configuration of the grid."""
        leans = (False, True) if isinstance(self.question.made, Lean) else (False,)
        for layout in MEMORY_FORMATS:
            for lean in leans:
                for recompute in self.recomputes():
                    yield replace(self.base, memory_format=layout, lean=lean, recompute=recompute)


class Bench:
    """One network on one card."""

    def __init__(self, network: Network, card: str) -> None:
        self.network = network
        self.question = replace(network.question, gpus=(card,))
        self.simulators: dict[str, Simulator] = {
            allocator: self.question.simulator(allocator) for allocator in ("", _EXPANDABLE)
        }
        self.capacity = self.simulators[""].card.capacity_bytes
        self.budget = Budget(capacity_bytes=self.capacity, safety_fraction=_SAFETY)
        self._evaluators: dict[StepSpec, Evaluator] = {}

    def plan(self) -> tuple[PlanAnswer, float]:
        """Return the plan and the seconds it took, recordings shared with what came before."""
        start = time.perf_counter()
        answer = plan_one(
            self.question,
            effective_batch_size=self.network.effective,
            safety_fraction=_SAFETY,
            recordings=self.network.recordings,
        )
        return answer, time.perf_counter() - start

    def evaluator(self, settings: StepSpec) -> Evaluator:
        """Return what answers for one configuration."""
        if settings not in self._evaluators:
            batches = [one.micro_batch_size for one in self.network.splits]
            self._evaluators[settings] = Evaluator(
                self.network.recordings,
                settings,
                self.simulators,
                batches,
                self.network.crowds.objects,
            )
        return self._evaluators[settings]

    def peaks(self, settings: StepSpec, split: Split, allocator: str = "") -> Peaks:
        """Return the peaks of one way to run."""
        evaluator = self.evaluator(settings)
        tape = evaluator.tape(split.micro_batch_size)
        return evaluator.peaks(tape, split, allocator)

    def rate(self, settings: StepSpec, split: Split) -> float:
        """Return the images per second of one way to run."""
        evaluator = self.evaluator(settings)
        return evaluator.rate(evaluator.tape(split.micro_batch_size), split)

    def best_of_grid(self) -> tuple[Way, int]:
        """Return the fastest way of the grid that fits the budget, and how many ways it has.

        From the fastest down, so that the first that fits is the best of all.

        Raises:
            StopIteration: none fits.
        """
        ways = [
            Way(settings, split, self.rate(settings, split))
            for settings in self.network.grid()
            for split in self.network.splits
        ]
        ways.sort(key=lambda one: -one.rate)
        best = next(
            way
            for way in ways
            for allocator in self.simulators
            if fits_budget(self.peaks(way.settings, way.split, allocator), self.budget)
        )
        return best, len(ways) * len(self.simulators)

    def ruled(self, rule: str) -> Ruled:
        """Return what a rule chooses and what comes of it."""
        base = self.network.base
        if rule == "autobatch 60%":
            return self._came_of(base, self._by_line(0.6))
        if rule == "official 80%":
            return self._came_of(base, self._by_line(0.8))
        if rule == "halving":
            return self._came_of(base, self._halved(base))
        paths = self.network.blocks if rule == "every block" else self.network.sqrt_blocks
        settings = replace(base, recompute=paths)
        return self._came_of(settings, self._halved(settings))

    def _halved(self, settings: StepSpec) -> Split:
        """Return the first of the halves of the effective batch that does not run out."""
        batch = self.network.effective
        while batch > 1 and not self.peaks(settings, self._split(batch)).fits:
            batch //= 2
        return self._split(batch)

    def _by_line(self, fraction: float) -> Split:
        """Return the batch at which a line through small batches meets a part of the memory."""
        used = [self._probed(batch) for batch in _PROBED]
        slope, base = np.polyfit(_PROBED, used, 1)
        batch = int((self.capacity * fraction - base) / slope)
        return self._split(min(max(batch, 1), self.network.effective))

    def _probed(self, batch: int) -> int:
        """Return what training steps at a batch hold, as such a rule measures it."""
        evaluator = self.evaluator(self.network.base)
        tape = evaluator.tape(batch)
        program = Program(tape, Life(validates=False))
        crowds = self.network.crowds.objects(batch)[-program.num_steps :]
        sizes = program.sizes(tape.events.requested_bytes, evaluator.answers(tape), crowds)
        peaks = self.simulators[""].peaks(program, sizes, tape.convolutions)
        return peaks.device_used_peak_bytes

    def _split(self, batch: int) -> Split:
        steps = max(1, round(self.network.effective / batch))
        return Split(micro_batch_size=batch, accumulation_steps=steps)

    def _came_of(self, settings: StepSpec, split: Split) -> Ruled:
        peaks = self.peaks(settings, split)
        if not peaks.fits:
            return Ruled(split, 0.0, "oom")
        slow = peaks.num_alloc_retries or peaks.num_slower_plans
        return Ruled(split, self.rate(settings, split), "slow" if slow else "fits")


def halved_activations(network: Network, batch: int) -> tuple[float, float]:
    """Return the cheapest time for half the activations, as parts of the plain time: lean or not.

    The plain step is channels-last at one micro-batch size; activations are counted at their most.
    """
    bench = Bench(network, "a100-80gb")
    plain = replace(network.base, memory_format="channels-last")
    split = Split(micro_batch_size=batch)
    allowed = _most_activations(bench, bench.evaluator(plain).tape(batch)) // 2
    fastest = bench.rate(plain, split)
    costs = []
    for lean in (False, True):
        evaluator = bench.evaluator(replace(plain, lean=lean))
        evaluator.prepare_recompute(network.blocks, batch)
        ladder = evaluator.ladder(batch)
        low, high = -1, NUM_RUNGS
        while high - low > 1:
            middle = (low + high) // 2
            enough = _most_activations(bench, ladder.tape(middle)) <= allowed
            low, high = (low, middle) if enough else (middle, high)
        settings = replace(evaluator.spec, recompute=ladder.chosen(high))
        tape = network.recordings.tape(settings, batch)
        if _most_activations(bench, tape) > 1.02 * allowed:
            costs.append(math.inf)
            continue
        costs.append(fastest / evaluator.rate(tape, split) - 1)
    return costs[0], costs[1]


def _most_activations(bench: Bench, tape: Tape) -> int:
    program = Program(tape, Life())
    crowds = bench.network.crowds.objects(tape.description.micro_batch_size)
    answers = bench.simulators[""].device_bytes(tape.convolutions, tape.launches)
    sizes = program.sizes(tape.events.requested_bytes, answers, crowds[-program.num_steps :])
    live = program.live_by_category(sizes)[tapes.CATEGORY_INDEX["activation"]]
    return int(live.max())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _described(answer: PlanAnswer) -> str:
    spec, split = answer.spec, answer.split
    parts = [f"{split.micro_batch_size}x{split.accumulation_steps}"]
    parts += ["nhwc"] if spec.memory_format == "channels-last" else []
    parts += ["lean"] if spec.lean else []
    parts += [f"r{len(spec.recompute)}"] if spec.recompute else []
    return " ".join([*parts, *(["exp"] if spec.allocator else [])])


@dataclass(frozen=True)
class Row:
    """One network on one card."""

    cells: tuple[str, ...]
    of_best: float
    """Images a second of the plan over those of the grid's best."""
    over: dict[str, float]
    """Images a second of the plan over those of each rule; infinite where that fails."""
    verdicts: dict[str, str]
    seconds: float


def row_of(network: Network, card: str) -> Row:
    """Return one network's figures on one card."""
    bench = Bench(network, card)
    answer, seconds = bench.plan()
    best, num_ways = bench.best_of_grid()
    rate = answer.predicted.images_per_second
    ruled = {rule: bench.ruled(rule) for rule in RULES}
    over = {rule: rate / one.rate if one.rate else math.inf for rule, one in ruled.items()}
    cells = [
        network.question.made.name.rpartition(":")[2],
        card,
        _described(answer),
        f"{answer.predicted.device_used_peak_bytes / GIB:.1f}",
        three_digits(rate),
        f"{rate / best.rate:.3f}",
        f"{seconds:.0f}",
        *(_ruled_cell(one, rate) for one in ruled.values()),
    ]
    _say(f"{' '.join(cells)} ({num_ways} ways)")
    verdicts = {rule: one.verdict for rule, one in ruled.items()}
    return Row(tuple(cells), rate / best.rate, over, verdicts, seconds)


def _ruled_cell(one: Ruled, rate: float) -> str:
    if one.verdict == "oom":
        return f"{one.split.micro_batch_size}: oom"
    mark = " slow" if one.verdict == "slow" else ""
    return f"{one.split.micro_batch_size}: {one.rate / rate:.2f}{mark}"


def _met(reached: bool) -> str:
    return "met" if reached else "missed"


def _remarks(rows: Sequence[Row], halved: tuple[float, float] | None) -> list[str]:
    of_best = [row.of_best for row in rows]
    over = [row.over["autobatch 60%"] for row in rows]
    lines = [
        "Images/s are a roofline's and peaks a replay's, for all columns alike; no card was used. "
        "A plan: micro-batch x accumulation, nhwc (channels-last), lean, r (blocks recomputed), "
        "exp (expandable segments). A rule: its micro-batch, and its images/s over the plan's.",
        "The grid: every micro-batch a plan may take, both layouts, lean or not, six sets of "
        "recomputed blocks, both allocator settings. The plan may also choose single blocks, "
        "which is why it can be above 1.",
        f"Aim, at least {_AIM_OF_BEST:.0%} of the grid's best: least {min(of_best):.3f}, median "
        f"{np.median(of_best):.3f}, {_met(min(of_best) >= _AIM_OF_BEST)}.",
        f"Aim, at least {_AIM_OVER_AUTOBATCH} times autobatch's images/s: median "
        f"{np.median(over):.2f}, least {min(over):.2f}, at or above in "
        f"{sum(one >= _AIM_OVER_AUTOBATCH for one in over)} of {len(rows)}, "
        f"{_met(min(over) >= _AIM_OVER_AUTOBATCH)}.",
        *(_rule_line(rule, rows) for rule in RULES),
        "Autobatch 60 % and the official 80 %: a line through the memory of batches 1 to 16 "
        "(training steps), met with that part of the card, at most the effective batch. Halving, "
        "as of Lightning and Accelerate: from the effective batch until a run does not fail. "
        "Every block, and all but the last block of each of sqrt(N) groups: halving with these "
        "recomputed. All of them plain: contiguous, default allocator.",
        "Seconds are a plan's with recordings kept from cards above; the first of each network "
        f"records: {', '.join(f'{s:.0f}' for s in _first_seconds(rows))} s.",
    ]
    if halved is not None:
        blocks, lean = halved
        best = min(halved)
        lines.append(
            f"Aim, yolov9-c's activations halved at no more than {_AIM_HALVED:.0%} time (batch 16, "
            f"channels-last, a100-80gb): {blocks:+.1%} by recomputed blocks, {lean:+.1%} with lean "
            f"ones too, {_met(best <= _AIM_HALVED)}."
        )
    return lines


def _first_seconds(rows: Sequence[Row]) -> list[float]:
    seen: dict[str, float] = {}
    for row in rows:
        seen.setdefault(row.cells[0], row.seconds)
    return list(seen.values())


def _rule_line(rule: str, rows: Sequence[Row]) -> str:
    ratios = [row.over[rule] for row in rows if math.isfinite(row.over[rule])]
    fails = sum(row.verdicts[rule] == "oom" for row in rows)
    slow = sum(row.verdicts[rule] == "slow" for row in rows)
    return (
        f"Over {rule}: the plan is {np.median(ratios):.2f} times as fast (median where it runs), "
        f"which runs out of memory in {fails} and runs slow in {slow} of {len(rows)} cases."
    )


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("--card", "cards", multiple=True, type=click.Choice(CARDS))
def main(networks: tuple[str, ...], cards: tuple[str, ...]) -> None:
    """Plan for every network and card, beside grid and rules."""
    rows: list[Row] = []
    halved = None
    for name in networks or NETWORKS:
        network = Network(name, NETWORKS[name])
        for card in cards or CARDS:
            try:
                rows.append(row_of(network, card))
            except MemplanError as error:
                _say(f"{name} on {card}: {error}")
        if name == "yolov9-c":
            halved = halved_activations(network, 16)
            _say(f"halved activations: {halved}")
    header = ("Network", "Card", "Plan", "GiB", "images/s", "Of grid's best", "s", *RULES)
    command = "plan_quality" + "".join(f" --network {one}" for one in networks)
    command += "".join(f" --card {one}" for one in cards)
    publish(
        "plan_quality",
        "Plans beside the best of a grid and beside simpler rules",
        header,
        [row.cells for row in rows],
        _remarks(rows, halved),
        command=command,
    )


if __name__ == "__main__":
    main()
