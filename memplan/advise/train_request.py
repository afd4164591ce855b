"""A training as it was requested, made options, workload and data that agree with each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.acceptance import check_weights
from memplan.advise.question import silent
from memplan.answers import PlanAnswer, load_answers
from memplan.capabilities import KnowsWeights
from memplan.errors import BadInputError, UsageError
from memplan.fit.predictor import Say
from memplan.registry import SavedName, families, make_workload, stride_of, takes
from memplan.spec import LEVER, LEVERS, spec_of
from memplan.training import TrainOptions, open_training, saved_options
from memplan.training.data_defaults import data_defaults
from memplan.workload import TrainingData, Workload

if TYPE_CHECKING:
    import torch

_PLANNED: tuple[str, ...] = (
    "batch",
    "batch_per_device",
    "accumulate",
    "effective_batch",
    *(one.name for one in LEVERS if one.is_predicted and "train" in one.commands),
)
_PLANNING_ONLY: tuple[str, ...] = ("gpu", "calibration", "safety", "objects_per_image")
_CHOSEN: tuple[str, ...] = ("batch", "batch_per_device", "accumulate")
# Command-line name, by field of TrainOptions that is called otherwise.
_CALLED = {"img": "image_size"}


@dataclass(kw_only=True)
class TrainRequest:
    """Options of a training, and which of them were given; what follows from others joins them."""

    values: dict[str, Any]
    """Every option of `memplan train` by name."""
    given: set[str]
    """The names of those that were given."""
    workload: Workload | None = None
    """In place of a name among the values."""
    plan: PlanAnswer | None = None
    """The plan that is followed, once there is one."""
    command: str = ""
    """The line that started it, for the records."""
    tell: Say = silent
    """Called with a line that a user should know."""
    say: Say = field(default=silent)
    """Called with a line on what is being done."""

    def __post_init__(self) -> None:
        """Read a batch of -1, the official recipe's word for a planned one."""
        if self.values["batch"] == -1:
            self.values |= {"auto_batch": True, "batch": TrainOptions.batch}
            self.given.discard("batch")

    def opened(self) -> tuple[Workload, TrainingData, TrainOptions, torch.device]:
        """Return workload, data, options and device of a new run: what can be refused is.

        Raises:
            MemplanError: options contradict each other, the workload or the data.
        """
        from memplan.training.setup import find_device

        self._check_combinations()
        if self.values["plan_file"] is not None:
            self.plan = _read_plan(self.values["plan_file"])
        if self.plan is not None:
            self._take_from_plan(self.plan)
        if self.values["data"] is None:
            raise UsageError(
                "--data is missing. Give a data.yaml, or write one with `memplan data sample DIR`."
            )
        name = self._name()
        for line in self._take_from_data():
            self.inform(line)
        options = self._sized(self.options(name), name)
        if options.weights is not None:
            check_weights(options.weights)
        device = find_device(options.device)
        make = name if isinstance(name, Workload) else factory(name)
        workload, data = open_training(make, options)
        return workload, data, options, device

    def inform(self, line: str) -> None:
        """Tell a user something, once for all processes that train together."""
        if is_first():
            self.tell(line)

    def _name(self) -> Workload | str | SavedName:
        """Return what is trained: as it was given, else as plan or weights say."""
        name = self.workload or self.values["cfg"] or self.values["workload"]
        if name:
            return name
        if self.plan is not None:
            return SavedName(self.plan.workload.name, str(self.values["plan_file"] or "the plan"))
        return self._cfg_of_weights()

    def _sized(self, options: TrainOptions, name: Workload | str | SavedName) -> TrainOptions:
        """Return the options with the size of images that the workload takes."""
        if isinstance(name, Workload):
            own = "img" not in self.given
            return replace(options, image_size=name.image_size) if own else options
        options = self._rounded(options, name)
        if "img" not in self.given and not takes(name, "image_size"):
            return replace(options, image_size=make_workload(name).image_size)
        return options

    def _rounded(self, options: TrainOptions, name: str | SavedName) -> TrainOptions:
        """Return the options with `--img` rounded up to whole strides, as officially; say so."""
        stride, given = stride_of(name), options.image_size
        rounded = -(-given // stride) * stride
        if rounded != given:
            self.inform(f"--img {given} is no multiple of the stride {stride}: {rounded} is taken.")
        return replace(options, image_size=rounded)

    def _cfg_of_weights(self) -> SavedName:
        """Return the configuration that the weights are of; of memplan's own, take the size too.

        Raises:
            UsageError: there are no weights, or they do not say.
        """
        missing = "--cfg is missing. Give a configuration, such as --cfg yolov9-s."
        if not self.values["weights"]:
            raise UsageError(missing)
        path = Path(self.values["weights"])
        check_weights(path)
        try:
            saved = saved_options(path)
        except BadInputError:
            known = (
                family.cfg_of_weights(path)
                for family in families().values()
                if isinstance(family, KnowsWeights)
            )
            name = next(filter(None, known), None)
            if name is None:
                text = f"{missing} {path} does not say what it was trained as."
                raise UsageError(text) from None
            return SavedName(name, str(path))
        if "img" not in self.given:
            self.values["img"] = saved.image_size
        return SavedName(saved.cfg, str(path))

    def _check_combinations(self) -> None:
        """Refuse options that would be ignored or contradict each other."""
        values, given = self.values, self.given
        if values["cfg"] and values["workload"]:
            raise UsageError(
                f"--cfg {values['cfg']} and --workload {values['workload']} both say what is "
                "trained. Give one of them."
            )
        brings_plan = values["plan_file"] is not None or self.plan is not None
        if values["quad"] and (values["auto_batch"] or brings_plan):
            raise UsageError(
                "--quad makes one image of twice the side from four, which plans do not know. Give "
                "--batch instead of a plan; it needs the memory of the same batch without --quad "
                "and up to four times as much in the loss."
            )
        if "batch" in given and "batch_per_device" in given:
            raise UsageError(
                f"--batch {values['batch']} is for all devices together and --batch-per-device "
                f"{values['batch_per_device']} for each. Give one of them."
            )
        if values["auto_batch"] and brings_plan:
            raise UsageError("--auto-batch makes a plan and --plan brings one. Give one of them.")
        self._check_planning(brings_plan=brings_plan)

    def _check_planning(self, *, brings_plan: bool) -> None:
        """Refuse options that a plan would choose, or that are for planning alone."""
        values, given = self.values, self.given
        if values["auto_batch"]:
            clash = next((name for name in _CHOSEN if name in given), None)
            if clash:
                raise UsageError(
                    f"--auto-batch chooses what {option_of(clash)} sets. Give --effective-batch "
                    "for the images a step, or leave out --auto-batch."
                )
        elif lone := next((n for n in _PLANNING_ONLY if n in given), None):
            raise UsageError(
                f"{option_of(lone)} is for planning. Add --auto-batch, or leave it out."
            )
        if brings_plan and (clash := next((n for n in _PLANNED if n in given), None)):
            raise UsageError(f"--plan sets what {option_of(clash)} sets. Give one of them.")
        if values["recompute"] == "auto" and not values["auto_batch"]:
            raise UsageError("--recompute auto is chosen by a plan. Add --auto-batch.")

    def _take_from_plan(self, plan: PlanAnswer) -> None:
        """Let the plan say what was not given, since it holds for nothing else."""
        if "img" not in self.given:
            self.values["img"] = plan.workload.img
        # What the images a step are, and how it runs, is the plan's to say, not the data set's.
        self.given |= {"img", *_PLANNED}

    def _take_from_data(self) -> list[str]:
        """Take what the data set recommends and was not given; return lines to print."""
        recommended = data_defaults(self.values["data"])
        if {"accumulate", "effective_batch"} & self.given:
            recommended.pop("effective_batch", None)
        # Hyperparameters, optimizer and images a step were found together: rates of one recipe
        # are none for another's.
        if {"hyp", "optimizer"} & self.given:
            for option in ("hyp", "optimizer", "effective_batch"):
                recommended.pop(option, None)
        taken = {name: value for name, value in recommended.items() if name not in self.given}
        self.values |= taken
        lines = []
        if taken:
            shown = ", ".join(f"{option_of(name)} {value}" for name, value in taken.items())
            lines.append(f"From {self.values['data']} (train_defaults): {shown}")
        effective = self.values["effective_batch"]
        chosen = {"batch", "batch_per_device"} & self.given
        if effective and not chosen and effective < self.values["batch"]:
            self.values["batch"] = effective
            if not self.values["auto_batch"]:
                lines.append(f"--batch {effective}: no more at once than a step asks for.")
        return lines

    def options(self, name: Workload | str | SavedName) -> TrainOptions:
        """Return the options checked; recompute waits for the workload."""
        known = {one.name for one in fields(TrainOptions)}
        chosen = {_CALLED.get(option, option): value for option, value in self.values.items()}
        chosen = {option: value for option, value in chosen.items() if option in known}
        chosen["cfg"] = name.text if isinstance(name, SavedName) else name
        if isinstance(name, Workload):
            chosen["cfg"] = name.name
        chosen["weights"] = Path(chosen["weights"]) if chosen["weights"] else None
        given = tuple(name for name in LEVER if name in self.given)
        levers = {name: self.values[name] for name in LEVER if name in self.values}
        levers = {name: None if value == "auto" else value for name, value in levers.items()}
        return TrainOptions(**chosen, spec=spec_of(levers), given=given)


def is_first() -> bool:
    """Return whether this process speaks for those that train together."""
    return int(os.environ.get("RANK") or 0) == 0


def option_of(name: str) -> str:
    """Return an option as the user types it."""
    return {"plan_file": "--plan"}.get(name, f"--{name.replace('_', '-')}")


def factory(name: str | SavedName) -> Callable[..., Workload]:
    """Return a function of keyword arguments that makes the workload of a name.

    The size of images is left out where the workload has that very size and takes no other.
    """

    def make(**arguments: Any) -> Workload:
        if not takes(name, "image_size"):
            rest = {key: value for key, value in arguments.items() if key != "image_size"}
            workload = make_workload(name, rest)
            if workload.image_size == arguments.get("image_size"):
                return workload
        if "num_classes" in arguments and not takes(name, "num_classes"):
            raise BadInputError(
                f"--data has {arguments['num_classes']} classes, but workload {name!r} is made for "
                "another number and takes no 'num_classes'. Give data with as many classes."
            )
        return make_workload(name, arguments)

    return make


def _read_plan(path: Path) -> PlanAnswer:
    answers = [answer for answer in load_answers(path) if isinstance(answer, PlanAnswer)]
    if len(answers) != 1:
        raise BadInputError(f"{path} holds {len(answers)} plans; --plan takes a file of one.")
    return answers[0]
