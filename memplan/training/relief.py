"""What a run does about memory that is about to run out: the cheapest thing that helps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from memplan.spec import StepSpec
from memplan.training.epoch import EpochRunner
from memplan.training.guard import make_room
from memplan.training.records import Records
from memplan.training.remedy import Action, Means, cheapest, planned_lighter
from memplan.training.setup import Setup
from memplan.training.watch import Cause, Finding
from memplan.units import format_bytes

_EXPANDABLE = "expandable_segments"
_SAYS = {
    Cause.LEAK: "Memory leaks: what stays allocated between steps has grown",
    Cause.FRAGMENTATION: "Memory fragments: what the allocator holds has grown, what is used has "
    "not",
    Cause.CROWDED: "A crowded batch took more than the usual step",
    Cause.OTHERS: "Another process, or a library loaded late, has taken memory of the device",
}


class Relief:
    """Follows memory from step to step and acts on what is found.

    Args:
        setup: what is trained.
        runner: whose micro-batch and step may change, between steps.
        records: told what was found and done.
    """

    def __init__(self, setup: Setup, runner: EpochRunner, records: Records) -> None:
        self._setup = setup
        self._runner = runner
        self._records = records
        self._emptied: Counter[Cause] = Counter()
        self._size = runner.micro_batch_size
        self._steps_an_epoch = setup.steps_an_epoch
        self.wants_smaller = False
        """Whether the next step shall be taken in smaller micro-batches, in all processes."""
        self.wants_lighter = False
        """Whether steps shall keep less for backward from the next one on, in all processes."""
        self.keeps_smaller = False
        """Whether the planned micro-batch would not help any more: memory leaks."""
        self.allocator_at_restart = ""
        """Options for the allocator once the run is resumed; empty leaves them as they are."""

    def follow(self, steps: int) -> None:
        """Look at memory after a step, and act where it is about to run out.

        Args:
            steps: of the optimizer since the run began.
        """
        memory = self._records.memory
        if memory.watch is None:
            return
        if self._size != self._runner.micro_batch_size:
            self._size = self._runner.micro_batch_size
            memory.watch.forget()
        memory.watch.last_step = steps + self._steps_left()
        finding = memory.follow(steps)
        self._records.compare_with_plan()
        if finding is not None:
            self.act(finding, steps)

    def _steps_left(self) -> int:
        """Return the steps to the run's end; warm-up takes more of them to an epoch."""
        images, runner = self._setup.data.num_training_images, self._runner
        left = (self._setup.options.epochs - runner.epoch) * images - runner.images_seen
        return -(-left * self._steps_an_epoch // images)

    def act(self, finding: Finding, steps: int) -> None:
        """Do what is cheapest about a finding, and tell."""
        action = cheapest(finding, self._means(finding.cause))
        if not self._setup.guards and action in {Action.SMALLER, Action.LIGHTER}:
            action = Action.WARN
        self._tell(finding, action, steps)
        if action is Action.EMPTY_CACHE:
            self._emptied[finding.cause] += 1
            make_room()
        elif action is Action.SMALLER:
            self.wants_smaller = True
            self.keeps_smaller = self.keeps_smaller or finding.cause is Cause.LEAK
        elif action is Action.LIGHTER:
            self.wants_lighter = True
        elif action is Action.EXPANDABLE:
            own = self._setup.step.spec.allocator
            self.allocator_at_restart = ",".join(filter(None, (own, f"{_EXPANDABLE}:True")))
        watch = self._records.memory.watch
        if action is not Action.WARN and watch is not None:
            watch.acted(finding.cause)

    def lighten(self) -> None:
        """Keep less for backward from here on, and tell; in all processes, between two steps."""
        self.wants_lighter = False
        if how := self._setup.step.lighten(self._planned()):
            self._records.lighten(self._runner, how)
        if self._records.memory.watch is not None:
            self._records.memory.watch.forget()

    def _planned(self) -> StepSpec | None:
        """Return how the plan would keep less at this micro-batch, where that is its fastest."""
        setup = self._setup
        settings = () if setup.plan is None else setup.plan.alternatives
        return planned_lighter(settings, setup.step.spec, self._runner.micro_batch_size)

    def _means(self, cause: Cause) -> Means:
        reading = self._records.memory.reading
        step = self._setup.step
        cached = 0 if reading is None else reading.reserved_bytes - reading.allocated_peak_bytes
        return Means(
            micro_batch_size=self._runner.micro_batch_size,
            cached_bytes=cached,
            can_lighten=step.lighter() is not None,
            is_lighter_faster=self._planned() is not None,
            is_expandable=_EXPANDABLE in step.spec.allocator + self.allocator_at_restart,
            times_emptied=self._emptied[cause],
        )

    def _tell(self, finding: Finding, action: Action, steps: int) -> None:
        reading = self._records.memory.reading
        left = finding.steps_left
        facts: dict[str, Any] = {
            "epoch": self._runner.epoch + 1,
            "step": steps,
            "cause": str(finding.cause),
            "action": str(action),
            "grown_bytes": finding.grown_bytes,
            "bytes_a_step": finding.bytes_a_step,
            "steps_left": left,
        }
        if reading is not None:
            facts |= {name: value for name, value in vars(reading).items() if name != "step"}
        soon = "" if left is None else f", and runs out in some {left} steps"
        done = "" if action is Action.WARN else f" Now: {action}."
        self._records.tell(
            "memory_watch",
            facts,
            f"Warning: {_SAYS[finding.cause]} by {format_bytes(finding.grown_bytes)} "
            f"(measured){soon}.{done}",
        )

    def spec_at_restart(self) -> StepSpec:
        """Return how a step runs once the run is resumed."""
        spec = self._setup.step.spec
        allocator = self.allocator_at_restart
        return replace(spec, allocator=allocator) if allocator else spec
