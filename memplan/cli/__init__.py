"""The command line: one file a command, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

import click

from memplan._version import __version__
from memplan.errors import MemplanError

# Command, the module that defines `command`, and its one-line help, so that listing imports none.
_COMMANDS = {
    "probe": ("memplan.cli.probe", "Where a training's memory goes, and how it grows with batch."),
    "run": ("memplan.cli.run", "Your own command on a card that is not there."),
    "plan": ("memplan.cli.plan", "The fastest settings that fit a card."),
    "train": ("memplan.cli.train", "Start the training run, planned and guarded."),
    "export": ("memplan.cli.export", "A trained network as a file to deploy, checked."),
    "report": ("memplan.cli.report", "PDF pages from saved probes, plans and runs."),
    "replay": ("memplan.cli.replay", "A tape or PyTorch snapshot on another card or allocator."),
    "check": ("memplan.cli.check", "For CI: fail when a probe is over a budget or a baseline."),
    "gpus": ("memplan.cli.gpus", "The catalogue of cards, and those in this machine."),
    "data": ("memplan.cli.data", "The embedded sample data set."),
}


class _Commands(click.Group):
    """A group that knows its commands' names without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="memplan", message="memplan %(version)s")
def cli() -> None:
    """Predict, plan and guard the GPU memory of a training run, with no GPU at hand.

    \b
    memplan probe --cfg yolov9-s --batch 1:64 --gpu rtx-3090
    """


def main() -> None:
    """Run the command line; every error a user can act on is one line and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except MemplanError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; closing stdout again would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
