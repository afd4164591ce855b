"""`memplan train`: the official recipe's training, planned and guarded."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan.cli.common import Progress, given_parameters, typed_command
from memplan.training.command_line import BARE, TrainCommand, train_options
from memplan.training.stopping import StoppedError
from memplan.units import format_seconds, three_digits

if TYPE_CHECKING:
    from memplan.advise.train_request import TrainRequest
    from memplan.answers import PlanAnswer
    from memplan.training import RunSummary


@click.command(cls=TrainCommand)
@train_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Start the training run: the official recipe, planned to fit and guarded.

    \b
    memplan train --auto-batch --cfg yolov9-s --data data.yaml --epochs 100

    Options have the official recipe's names, meanings and defaults, except that --batch is always
    the images at once (on all devices together), and --data and --cfg have no default. A data set
    may recommend settings for itself (train_defaults in data.yaml: hyp, optimizer, effective_batch,
    close_mosaic, min_items); they are printed, and options given here win. The official option
    --evolve is refused, with its reason.
    """
    if (count := values["device"].count(",") + 1) > 1 and "WORLD_SIZE" not in os.environ:
        from memplan.training.launch import launch

        sys.exit(launch([sys.executable, "-P", "-m", "memplan", *sys.argv[1:]], count))
    from memplan.advise.train_request import is_first
    from memplan.advise.training import start_training

    request = request_from(context, values)
    try:
        summary = start_training(request)
    except StoppedError as stopped:
        # How to go on is on the screen already.
        sys.exit(stopped.exit_code)
    if is_first():
        _conclude(summary, request.plan)


def request_from(context: click.Context, values: dict[str, Any]) -> TrainRequest:
    """Return what a command asks."""
    from memplan.advise.train_request import TrainRequest

    if values["resume"] is not None:
        # Bare, it is the newest run below the working directory.
        values = {**values, "resume": Path("" if values["resume"] == BARE else values["resume"])}
    progress = Progress()

    def tell(line: str) -> None:
        progress.done()
        _tell(line)

    return TrainRequest(
        values=dict(values),
        given=set(given_parameters(context)),
        command=typed_command(),
        tell=tell,
        say=progress,
    )


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _conclude(summary: RunSummary, plan: PlanAnswer | None) -> None:
    """Print what the run came to, and draw it."""
    from memplan.advise.run_pages import draw_run, is_worth_drawing

    draws = is_worth_drawing(summary)
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
    if draws:
        draw_run(summary.run_folder, plan, typed_command(), _tell)
