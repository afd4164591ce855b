"""What a run stands at, and the checkpoint made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from memplan import _version
from memplan.host_memory import available_host_bytes
from memplan.spec import StepSpec
from memplan.training.checkpoint import Checkpoint, plain_state, state_in_place
from memplan.training.setup import Setup
from memplan.workload import RecognisedData, ResumableData


@dataclass
class Standing:
    """What changes from epoch to epoch and goes into checkpoints."""

    epochs_done: int = 0
    steps: int = 0
    """Of the optimizer, since the run began."""
    best_fitness: float = 0.0
    best_epoch: int = -1
    """0-based; -1 while nothing was evaluated."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> Standing:
        """Return where a checkpoint stands; the beginning without one."""
        if checkpoint is None:
            return cls()
        return cls(
            epochs_done=checkpoint.epoch,
            steps=checkpoint.steps,
            best_fitness=checkpoint.best_fitness,
            best_epoch=checkpoint.best_epoch,
            best_metrics=dict(checkpoint.best_metrics),
            metrics=dict(checkpoint.metrics),
        )

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take an epoch's evaluation; one as good as the best is the new best."""
        self.metrics = dict(metrics)
        fitness = metrics["fitness"]
        if fitness >= self.best_fitness or self.best_epoch < 0:
            self.best_fitness, self.best_epoch = fitness, epoch
            self.best_metrics = dict(metrics)


def is_host_short(setup: Setup) -> bool:
    """Return whether the host has no room to spare for a copy of the weights and their average."""
    step = setup.step
    if step.device.type == "cpu":
        return False  # nothing is copied there
    models = (step.model, *(() if step.average is None else (step.average.model,)))
    wanted: int = sum(one.nbytes for model in models for one in model.state_dict().values())
    return available_host_bytes() < _HOST_ROOM * wanted


_HOST_ROOM = 2  # times the copy: the largest tensors of what is written come on top


def checkpoint_of(
    setup: Setup,
    standing: Standing,
    random_states: Sequence[dict[str, Any]],
    *,
    micro_batch_size: int,
    validation_size: int,
    position: dict[str, Any] | None,
    finished: bool,
    spec: StepSpec,
    in_pieces: bool = False,
) -> Checkpoint:
    """Return the state of a run as a checkpoint; tensors of a GPU are copied to the host.

    Args:
        setup: with the trained model.
        standing: of the run.
        random_states: of each process, by rank.
        micro_batch_size: images at once on a device.
        validation_size: images validated at once.
        position: of the epoch under way; None between epochs.
        finished: whether the run is over.
        spec: how a step runs once the run is resumed.
        in_pieces: whether tensors stay where they are, so that the host need not hold all of them:
            saving brings them there one by one. The file then names the device they were on.
    """
    step, data, plan = setup.step, setup.data, setup.plan
    if plan is not None and spec != plan.spec:
        plan = replace(
            plan,
            spec=replace(
                plan.spec, recompute=spec.recompute, lean=spec.lean, allocator=spec.allocator
            ),
        )
    state = state_in_place if in_pieces else plain_state
    average = step.average
    return Checkpoint(
        epoch=standing.epochs_done,
        finished=finished,
        model=state(step.model),
        ema=None if average is None else state(average.model),
        ema_updates=0 if average is None else average.updates,
        optimizer=step.optimizer.state_dict(),
        scaler=step.scaler.state_dict(),
        micro_batch_size=micro_batch_size,
        best_fitness=standing.best_fitness,
        best_epoch=standing.best_epoch,
        best_metrics=standing.best_metrics,
        metrics=standing.metrics,
        random_states=random_states[0],
        options=replace(setup.options, spec=spec).as_record(),
        hyperparameters=setup.hyperparameters,
        workload=setup.workload.name,
        num_classes=setup.data.num_classes,
        plan=None if plan is None else plan.to_json(),
        data=data.state() if isinstance(data, ResumableData) else {},
        fingerprint=dict(data.fingerprint()) if isinstance(data, RecognisedData) else {},
        versions={"memplan": _version.__version__, "torch": str(torch.__version__)},
        position=position,
        steps=standing.steps,
        validation_size=validation_size,
        ranks=setup.ranks.size,
        other_random_states=list(random_states[1:]),
    )
