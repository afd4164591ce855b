"""`memplan train`: the official recipe's training, planned and guarded."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan.answers import PlanAnswer, load_answers
from memplan.capabilities import KnowsWeights
from memplan.cli.common import Progress, typed_command
from memplan.errors import BadInputError, UsageError
from memplan.registry import SavedName, families, make_workload, runs_code, stride_of, takes
from memplan.spec import LEVER, LEVERS, free_levers, of_plan, spec_of
from memplan.train import TrainOptions
from memplan.train.command_line import BARE, TrainCommand, train_options
from memplan.train.stopping import StoppedError
from memplan.units import format_bytes, format_seconds, three_digits

if TYPE_CHECKING:
    from memplan.train import RunSummary
    from memplan.workload import TrainingData, Workload

_GO_WITH_RESUME = frozenset({"resume", "device", "workers", "noplots", "workload", "rank_timeout"})
_FOLDER = frozenset({"project", "name", "exist_ok"})
_PLANNED: tuple[str, ...] = (
    "batch",
    "batch_per_device",
    "accumulate",
    "effective_batch",
    *(one.name for one in LEVERS if one.is_predicted and "train" in one.commands),
)
_PLANNING_ONLY: tuple[str, ...] = ("gpu", "calibration", "safety", "objects_per_image")
_CHOSEN: tuple[str, ...] = ("batch", "batch_per_device", "accumulate")
_PLANNING = "Planning the batch: one training step is recorded and replayed..."
# Command-line name, by field of TrainOptions that is called otherwise.
_CALLED = {"img": "image_size"}


@click.command(cls=TrainCommand)
@train_options
@click.pass_context
def command(ctx: click.Context, /, **values: Any) -> None:
    """Start the training run: the official recipe, planned to fit and guarded.

    \b
    memplan train --auto-batch --cfg yolov9-s --data data.yaml --epochs 100

    Options have the official recipe's names, meanings and defaults, except that --batch is always
    the images at once (on all devices together), and --data and --cfg have no default. A data set
    may recommend settings for itself (train_defaults in data.yaml: hyp, optimizer, effective_batch,
    close_mosaic, min_items); they are printed, and options given here win. The official option
    --evolve is refused, with its reason.
    """
    given = {
        name
        for name in values
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    if values["batch"] == -1:
        values["auto_batch"] = True
        given.discard("batch")
    if (count := values["device"].count(",") + 1) > 1 and "WORLD_SIZE" not in os.environ:
        from memplan.train.launch import launch

        sys.exit(launch([sys.executable, "-P", "-m", "memplan", *sys.argv[1:]], count))
    session = _Session(values, given)
    try:
        summary = session.resume() if values["resume"] is not None else session.start()
    except StoppedError as stopped:
        # How to go on is on the screen already.
        sys.exit(stopped.exit_code)
    if _is_first():
        _conclude(summary, session.plan, draws=not values["noplots"])


class _Session:
    """One call of the command.

    Args:
        values: every option by name.
        given: the names of those that the user gave.
    """

    def __init__(self, values: dict[str, Any], given: set[str]) -> None:
        self.values = values
        self.given = given
        self.plan: PlanAnswer | None = None

    def resume(self) -> RunSummary:
        """Return what the rest of an interrupted run came to."""
        from memplan.train import find_checkpoint, saved_options, train

        self._check_resume(self.given - _GO_WITH_RESUME - _FOLDER)
        path = find_checkpoint(Path("" if self.values["resume"] == BARE else self.values["resume"]))
        own_folder = path.parent.name == "weights"
        if own_folder:
            self._check_resume(self.given & _FOLDER)
        if not own_folder and "name" not in self.given:
            raise UsageError(
                f"{path} is in no run folder (its weights/last.pt), and a file does not choose "
                "where to write. Give --name, and --project where it is not runs/train."
            )
        saved = saved_options(path)
        options = replace(
            saved,
            resume=path,
            device=self.values["device"],
            workers=self.values["workers"],
            rank_timeout=self.values["rank_timeout"],
            noplots=saved.noplots or self.values["noplots"],
            **{name: self.values[name] for name in _FOLDER},
        )
        return train(_factory(self._resumed_name(saved.cfg, path)), options)

    def _check_resume(self, extra: set[str]) -> None:
        """Refuse options that a run which goes on cannot take."""
        if extra:
            raise UsageError(
                f"--resume goes on with the run's own options, so {_option(min(extra))} cannot be "
                "given with it. Leave it out, or start a new run with --weights."
            )

    def _resumed_name(self, saved: str, path: Path) -> str | SavedName:
        """Return what to train: as typed where it runs code, else as the file says.

        Raises:
            BadInputError: the file's name must be typed.
            UsageError: another one was typed than the run is of.
        """
        typed: str | None = self.values["workload"]
        if typed is None:
            return SavedName(saved, str(path))
        if saved and saved != typed and not runs_code(saved):
            raise UsageError(
                f"{path} is of a run of {saved!r}, not of --workload {typed}. Leave that out."
            )
        return typed

    def start(self) -> RunSummary:
        """Return what a new run came to."""
        from memplan.train import train

        workload, data, options, device = self.open()
        if self.values["auto_batch"]:
            self.plan = self._shared_plan(workload, data, options, device)
        return train(workload, options, plan=self.plan, data=data)

    def open(self) -> tuple[Workload, TrainingData, TrainOptions, Any]:
        """Return workload, data, options and device of a new run: what can be refused is.

        Raises:
            MemplanError: options contradict each other, the workload or the data.
        """
        from memplan.train import open_training

        self._check_combinations()
        if self.values["plan_file"] is not None:
            self.plan = _read_plan(self.values["plan_file"])
            self._take_from_plan(self.plan)
        if self.values["data"] is None:
            raise UsageError(
                "--data is missing. Give a data.yaml, or write one with `memplan data sample DIR`."
            )
        name = (
            self.values["cfg"]
            or self.values["workload"]
            or self._planned_name()
            or self._cfg_of_weights()
        )
        for line in self._take_from_data():
            if _is_first():
                click.echo(line, err=True)
        options = self._rounded(self._options(name), name)
        if "img" not in self.given and not takes(name, "image_size"):
            options = replace(options, image_size=make_workload(name).image_size)
        device = _find_device(options.device)
        workload, data = open_training(_factory(name), options)
        return workload, data, options, device

    def _rounded(self, options: TrainOptions, name: str | SavedName) -> TrainOptions:
        """Return the options with `--img` rounded up to whole strides, as officially; say so."""
        stride, asked = stride_of(name), options.image_size
        rounded = -(-asked // stride) * stride
        if rounded != asked and _is_first():
            click.echo(
                f"--img {asked} is no multiple of the stride {stride}: {rounded} is taken.",
                err=True,
            )
        return replace(options, image_size=rounded)

    def _planned_name(self) -> SavedName | None:
        """Return what the plan was made for, None without a plan."""
        if self.plan is None:
            return None
        return SavedName(self.plan.workload.name, str(self.values["plan_file"]))

    def _cfg_of_weights(self) -> SavedName:
        """Return the configuration that the weights are of; of memplan's own, take the size too.

        Raises:
            UsageError: there are no weights, or they do not say.
        """
        from memplan.train import saved_options

        missing = "--cfg is missing. Give a configuration, such as --cfg yolov9-s."
        if not self.values["weights"]:
            raise UsageError(missing)
        path = Path(self.values["weights"])
        if not path.is_file():
            raise BadInputError(f"No weights at {path}. Give a checkpoint, or '' for fresh ones.")
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
        if values["quad"] and (values["auto_batch"] or values["plan_file"]):
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
        if values["auto_batch"] and values["plan_file"]:
            raise UsageError("--auto-batch makes a plan and --plan brings one. Give one of them.")
        if values["auto_batch"]:
            clash = next((name for name in _CHOSEN if name in given), None)
            if clash:
                raise UsageError(
                    f"--auto-batch chooses what {_option(clash)} sets. Give --effective-batch for "
                    "the images a step, or leave out --auto-batch."
                )
        elif lone := next((n for n in _PLANNING_ONLY if n in given), None):
            raise UsageError(f"{_option(lone)} is for planning. Add --auto-batch, or leave it out.")
        if values["plan_file"] and (clash := next((n for n in _PLANNED if n in given), None)):
            raise UsageError(f"--plan sets what {_option(clash)} sets. Give one of them.")
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
        from memplan.train.data_defaults import data_defaults

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
            shown = ", ".join(f"{_option(name)} {value}" for name, value in taken.items())
            lines.append(f"From {self.values['data']} (train_defaults): {shown}")
        effective = self.values["effective_batch"]
        chosen = {"batch", "batch_per_device"} & self.given
        if effective and not chosen and effective < self.values["batch"]:
            self.values["batch"] = effective
            if not self.values["auto_batch"]:
                lines.append(f"--batch {effective}: no more at once than a step asks for.")
        return lines

    def _options(self, name: str | SavedName) -> TrainOptions:
        """Return the options checked; recompute waits for the workload."""
        known = {field.name for field in fields(TrainOptions)}
        chosen = {_CALLED.get(option, option): value for option, value in self.values.items()}
        chosen = {option: value for option, value in chosen.items() if option in known}
        chosen["cfg"] = name.text if isinstance(name, SavedName) else name
        chosen["weights"] = Path(chosen["weights"]) if chosen["weights"] else None
        given = tuple(name for name in LEVER if name in self.given)
        levers = {name: self.values[name] for name in LEVER if name in self.values}
        levers = {name: None if value == "auto" else value for name, value in levers.items()}
        return TrainOptions(**chosen, spec=spec_of(levers), given=given)

    def _shared_plan(
        self, workload: Workload, data: TrainingData, options: TrainOptions, device: Any
    ) -> PlanAnswer:
        """Return the plan, which the first of several processes makes for all."""
        from memplan.train.distributed import join

        ranks = join(device, options.rank_timeout)
        if ranks.size > 1 and device.type == "cpu":
            raise UsageError(
                "--auto-batch plans host memory for one process. Give --batch, or train on one."
            )

        def work() -> dict[str, Any]:
            made = self._make_plan(workload, data, options, device, ranks.size)
            _show_plan(made)
            return made.to_json()

        return PlanAnswer.from_json(ranks.alone(work))

    def _make_plan(
        self,
        workload: Workload,
        data: TrainingData,
        options: TrainOptions,
        device: Any,
        num_ranks: int,
    ) -> PlanAnswer:
        if device.type == "cpu":
            return self._plan_for_host(workload, data, options)
        return self._plan_for_card(workload, data, options, device.index or 0, num_ranks)

    def _plan_for_card(
        self,
        workload: Workload,
        data: TrainingData,
        options: TrainOptions,
        index: int,
        num_ranks: int,
    ) -> PlanAnswer:
        from memplan.advise import Question, plan_one
        from memplan.advise.plans import known_calibrations
        from memplan.cli.question import warn
        from memplan.train.setup import step_spec

        values = self.values
        click.echo(_PLANNING, err=True)
        counts = _fill_images(workload, data, values["objects_per_image"])
        question = Question(
            workload=workload,
            gpus=(index if values["gpu"] is None else values["gpu"],),
            spec=of_plan(step_spec(options, workload)),
            devices=num_ranks,
            calibration=values["calibration"],
            object_counts=counts,
        )
        question = known_calibrations(question, warn)
        progress = Progress()
        answer = plan_one(
            question,
            effective_batch_size=options.effective_batch,
            safety_fraction=values["safety"],
            num_images=data.num_training_images,
            free=self._free(options),
            data=str(options.data),
            say=progress,
        )
        progress.done()
        return answer

    def _free(self, options: TrainOptions) -> frozenset[str]:
        """Return the levers that a plan may choose: those that were not given."""
        return free_levers({name: self.values[name] for name in options.given})

    def _plan_for_host(
        self, workload: Workload, data: TrainingData, options: TrainOptions
    ) -> PlanAnswer:
        from memplan.planner.host import plan_for_host
        from memplan.trace.record import record
        from memplan.train.setup import step_spec

        values = self.values
        if values["gpu"] is not None:
            raise UsageError(
                f"--gpu {values['gpu']} plans for a card, but this run is on the CPU. Use "
                "`memplan plan` for a plan alone, or leave out --gpu."
            )
        if values["calibration"] is not None:
            raise UsageError(
                "--calibration is about a card, but this run is on the CPU. Leave it out."
            )
        if values["safety"] is not None:
            raise UsageError("--safety is about a card, but this run is on the CPU. Leave it out.")
        if values["precision"] not in {None, "fp32"}:
            raise UsageError(f"--precision {values['precision']} needs a GPU; a CPU has fp32.")
        click.echo(_PLANNING, err=True)
        _fill_images(workload, data, values["objects_per_image"])
        spec = of_plan(step_spec(options, workload))
        if "memory_format" in self._free(options):
            spec = replace(spec, memory_format="channels-last")
        return plan_for_host(
            workload,
            spec,
            record,
            effective_batch=options.effective_batch,
            images=data.num_training_images,
            command=typed_command(),
        )


def _is_first() -> bool:
    """Return whether this process speaks for those that train together."""
    return int(os.environ.get("RANK") or 0) == 0


def _factory(name: str | SavedName) -> Callable[..., Workload]:
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


def _option(name: str) -> str:
    """Return an option as the user types it."""
    return {"plan_file": "--plan"}.get(name, f"--{name.replace('_', '-')}")


def _read_plan(path: Path) -> PlanAnswer:
    answers = [answer for answer in load_answers(path) if isinstance(answer, PlanAnswer)]
    if len(answers) != 1:
        raise BadInputError(f"{path} holds {len(answers)} plans; --plan takes a file of one.")
    return answers[0]


def _find_device(name: str) -> Any:
    from memplan.train.setup import find_device

    return find_device(name)


def _fill_images(workload: Workload, data: TrainingData, stated: int | None) -> Any:
    """Tell the workload how full images are; return the data set's counts unless it was stated."""
    from memplan.planner.crowd import Crowd

    counts = data.objects_per_image if stated is None else None
    mean = stated if counts is None else Crowd.of_data(workload, counts).mean
    workload.objects_per_image = max(1, round(mean or 0))
    return counts


def _show_plan(plan: PlanAnswer) -> None:
    predicted = plan.predicted
    accumulation = (
        f"{plan.split.accumulation_steps} a step" if plan.split.accumulates else "no accumulation"
    )
    click.echo(
        f"Plan for {plan.gpu.name}: {plan.split.micro_batch_size} images at once, {accumulation}, "
        f"{plan.split.effective_batch_size} images a step; {plan.spec.words()}; "
        f"{format_bytes(predicted.device_used_peak_bytes)} of {format_bytes(plan.budget_bytes)} "
        "(predicted)",
        err=True,
    )
    for note in plan.notes:
        click.echo(note, err=True)


def _conclude(summary: RunSummary, plan: PlanAnswer | None, *, draws: bool) -> None:
    """Print what the run came to, and draw it."""
    # Validation losses stand in results.csv; here they would not fit the line.
    shown = {
        name: value
        for name, value in summary.best_metrics.items()
        if name != "fitness" and not name.endswith("_loss")
    }
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
    last = summary.run_folder / "weights" / "last.pt"
    if summary.was_finished:
        click.echo(
            f"The run in {summary.run_folder} finished after {summary.epochs_done} epochs: nothing "
            f"is left to train. To train on from its weights, start a new run with "
            f"--weights {shlex.quote(str(last))}"
        )
        if metrics:
            click.echo(f"Best epoch {summary.best_epoch}: {metrics} (measured)")
        draws = draws and not (summary.run_folder / "report.pdf").exists()
    elif not summary.epochs_done:
        click.echo(f"Evaluated in {format_seconds(summary.seconds)}: {metrics} (measured)")
    else:
        epochs = f"{summary.epochs_done} epoch" + ("" if summary.epochs_done == 1 else "s")
        early = ", stopped early by --patience" if summary.stopped_early else ""
        click.echo(
            f"Trained {epochs} in {format_seconds(summary.seconds)}{early}; "
            f"{three_digits(summary.images_per_second)} images/s (measured)"
        )
        if metrics:
            click.echo(f"Best epoch {summary.best_epoch}: {metrics} (measured)")
    if summary.details:
        click.echo(summary.details)
        what = "Tables and plots of it" if draws else "Its tables"
        click.echo(f"{what} are in {summary.run_folder}", err=True)
    if summary.epochs_done:
        weights = summary.run_folder / "weights"
        click.echo(f"Weights {weights / 'best.pt'} and {weights / 'last.pt'}")
    if draws and summary.epochs_done:
        from memplan.cli.train_report import draw_run

        draw_run(summary.run_folder, plan, typed_command())
