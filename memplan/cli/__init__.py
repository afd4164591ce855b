"""The command line: one file a command, each imported only when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from memplan._version import __version__
from memplan.bounds import BOUNDS, check_number
from memplan.errors import MemplanError, UsageError, is_out_of_memory

# Command, the module that defines `command`, and its one-line help, so that listing imports none.
_COMMANDS = {
    "probe": ("memplan.cli.probe", "Where a training's memory goes, and how it grows with batch."),
    "run": ("memplan.cli.run", "Your own command on a card that is not there."),
    "plan": ("memplan.cli.plan", "The fastest settings that fit a card."),
    "train": ("memplan.cli.train", "Start the training run, planned and guarded."),
    "val": ("memplan.cli.val", "Precision, recall and mAP of a trained network."),
    "predict": ("memplan.cli.predict", "Detections in images and videos, drawn and written."),
    "export": ("memplan.cli.export", "A trained network as a file to deploy, checked."),
    "report": ("memplan.cli.report", "PDF pages from saved probes, plans and runs."),
    "replay": ("memplan.cli.replay", "A tape or PyTorch snapshot on another card or allocator."),
    "check": ("memplan.cli.check", "For CI: fail when a probe is over a budget or a baseline."),
    "gpus": ("memplan.cli.gpus", "The catalogue of cards, and those in this machine."),
    "data": ("memplan.cli.data", "The embedded sample data set."),
}


_LONGEST_PATH = 4096  # bytes; Linux's PATH_MAX
_LONGEST_PART = 255  # Linux's NAME_MAX


def _checked(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuse what no number, text or path of a command can be, by its option's name.

    Raises:
        UsageError: a number is outside its bounds, or a text is no path.
    """
    del ctx
    option = next((name for name in parameter.opts if name in BOUNDS), parameter.opts[0])
    for one in value if isinstance(value, tuple) else (value,):
        if option == "--batch" and one == -1:
            continue  # the official spelling of --auto-batch
        check_number(option, one)
        if isinstance(one, Path):
            _check_path(option, one)
        if option == "--report" and one is not None:
            _check_report(Path(one))
    return value


def _check_report(path: Path) -> None:
    """Refuse a report whose name says neither of the two kinds."""
    if path.suffix.lower() not in {".pdf", ".html", ".htm"}:
        raise UsageError(
            f"--report {path}: reports are PDF or HTML. Give a name ending in .pdf or .html."
        )


def _check_path(option: str, path: Path) -> None:
    parts = [len(part.encode(errors="surrogateescape")) for part in path.parts]
    if max(parts, default=0) > _LONGEST_PART or sum(parts) + len(parts) > _LONGEST_PATH:
        text = str(path)
        raise UsageError(
            f"{option} {text[:40]}... is longer than a path can be: {len(text)} characters."
        )


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
        for parameter in command.params:
            if parameter.callback is None:
                parameter.callback = _checked
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="memplan", message="memplan %(version)s")
# What `python -m torch.distributed.launch -m memplan train ...` puts before the command.
@click.option("--local-rank", "--local_rank", type=int, hidden=True, expose_value=False)
def cli() -> None:
    """Predict, plan and guard the GPU memory of a training run, with no GPU at hand.

    \b
    memplan probe --cfg yolov9-s --batch 1:64 --gpu rtx-3090
    """


def main() -> None:
    """Run the command line as it was typed, and exit."""
    _open_closed_streams()
    sys.exit(exit_code(sys.argv[1:]))


def _open_closed_streams() -> None:
    """Open standard streams that were closed, so that no file takes their place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def exit_code(arguments: Sequence[str]) -> int:
    """Return the exit code of a command; every error a user can act on is one line."""
    try:
        _check_arguments(arguments)
        result = cli.main(list(arguments), standalone_mode=False)
        # What click gives for --help and the like is a code; commands give nothing.
        code = result if isinstance(result, int) else 0
    except MemplanError as error:
        code = _ended(f"Error: {error}", error.exit_code)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _ended("Interrupted.", 130)
    except UnicodeError as error:
        code = _ended(f"Error: a name or a text is no UTF-8 ({error}).", 1)
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; closing stdout again would complain.
        _silence()
        code = 0
    except OSError as error:
        # The machine's own reasons, such as a full disk, wherever they come up.
        where = f"{error.filename}: " if error.filename else ""
        code = _ended(f"Error: {where}{error.strerror or error}.", 1)
        _silence()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        code = _ended(f"Error: Out of memory ({reason}). Close other programs.", 1)
    return code


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse the one character that no shell passes and no path takes, before paths are looked at.

    Raises:
        UsageError: an argument holds it.
    """
    if (wrong := next((one for one in arguments if "\0" in one), None)) is not None:
        raise UsageError(f"{wrong!r} holds the character NUL, which no name does.")


def _ended(text: str, code: int) -> int:
    """Return an exit code once its reason was said, if anything can be said at all."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)
    return code


def _silence() -> None:
    """Leave nothing for a standard output that takes no more to choke on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
