"""What several commands share: options, tables, progress, and where results are written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from memplan.answers import save_answers
from memplan.blocks import BlockLives
from memplan.click_options import F, blocks_option, options
from memplan.spec import LEVER


class Progress:
    """One line on standard error that says what is being done; silent where nobody watches.

    It counts the seconds on, so that a long piece of work is seen to go on.
    """

    REDRAW_SECONDS = 1.0

    def __init__(self, *, quiet: bool = False) -> None:
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._live = is_terminal and not quiet
        self._start = time.monotonic()
        self._text = ""
        self._ended: threading.Event | None = None
        self._lock = threading.Lock()

    def __call__(self, text: str) -> None:
        """Show what is being done now."""
        if not self._live:
            return
        with self._lock:
            self._text = text
            self._draw()
        if self._ended is None:
            self._ended = threading.Event()
            threading.Thread(target=self._count, args=(self._ended,), daemon=True).start()

    def _count(self, ended: threading.Event) -> None:
        while not ended.wait(self.REDRAW_SECONDS):
            with self._lock:
                if not ended.is_set():
                    self._draw()

    def _draw(self) -> None:
        elapsed = f" ({time.monotonic() - self._start:.0f} s)"
        room = max(shutil.get_terminal_size().columns - 1 - len(elapsed), 10)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            sys.stderr.write(f"\r\x1b[K{self._text[:room]}{elapsed}")
            sys.stderr.flush()

    def done(self) -> None:
        """Clear the line."""
        if self._live:
            with self._lock:
                if self._ended is not None:
                    self._ended.set()
                    self._ended = None
                click.echo("\r\x1b[K", nl=False, err=True)


def given_parameters(context: click.Context) -> frozenset[str]:
    """Return the names of the parameters that a user gave."""
    default = click.core.ParameterSource.DEFAULT
    return frozenset(
        name for name in context.params if context.get_parameter_source(name) not in {None, default}
    )


def given_levers(context: click.Context) -> dict[str, Any]:
    """Return the levers that a user gave, by name, as typed."""
    given = given_parameters(context)
    return {name: value for name, value in context.params.items() if name in given & set(LEVER)}


# What is trained.
workload_options = options(
    click.option("--cfg", metavar="NAME|PATH", help="A YOLOv9 configuration or PATH.yaml."),
    blocks_option,
    click.option(
        "--workload",
        metavar="NAME",
        help="Any other: torchvision:resnet50, official:PATH, or package.module:factory.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="An argument of the workload, such as num_classes=10; repeatable.",
    ),
    click.option(
        "--img",
        type=int,
        metavar="PIXELS",
        help="Side of the images.  [640; torchvision's classifiers 224]",
    ),
    click.option(
        "--val-batch", type=int, metavar="N", help="Images validated at once.  [twice the batch]"
    ),
    click.option("--multi-scale", is_flag=True, help="Train at many sizes; plan for the largest."),
    click.option(
        "--objects-per-image", type=int, metavar="N", help="Labelled objects in an image.  [20]"
    ),
    click.option(
        "--data",
        "data_path",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A data.yaml; its labels give the objects in an image.",
    ),
)

# Which card.
card_options = options(
    click.option(
        "--gpu",
        "gpus",
        multiple=True,
        metavar="INDEX|NAME",
        help="A card in this machine, or one of `memplan gpus`; repeatable.",
    ),
    click.option("--capacity", metavar="SIZE", help="Override the card's memory, such as 24GiB."),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="What was measured on the card.  [as `memplan gpus --calibrate` kept it]",
    ),
    click.option(
        "--cuda",
        "cuda_version",
        metavar="VERSION",
        help="The CUDA of your torch, such as 11.3; it decides the context.  [as installed]",
    ),
    click.option(
        "--cudnn",
        "cudnn_version",
        metavar="VERSION|DIR",
        help="The cuDNN of your training: one that is kept beside, or the folder of a wheel; notes "
        "say where another one answers.  [as installed]",
    ),
    click.option(
        "--devices",
        type=click.IntRange(min=1),
        default=1,
        metavar="N",
        help="Cards that train together.  [1]",
    ),
)

paper_option = click.option(
    "--paper",
    type=click.Choice(("a4", "letter")),
    help="Of the pages.  [as PAPERSIZE or the locale says]",
)

# Where the blocks of a life go.
blocks_report_option = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="PATH.pdf|.html",
    help="Also write a report; the HTML page shows every block.",
)


def snapshot_option(help_text: str) -> Callable[[F], F]:
    """Return the option that names a PyTorch memory snapshot to write."""
    return click.option(
        "--snapshot",
        type=click.Path(path_type=Path),
        metavar="PATH.pickle",
        help=help_text,
    )


# Where answers go.
output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON, memory in bytes."),
    click.option(
        "--output",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Also save the answer as JSON.",
    ),
    click.option(
        "--report",
        type=click.Path(path_type=Path),
        metavar="PATH.pdf|.html",
        help="Also write a report: PDF pages, or one HTML page with a timeline to zoom.",
    ),
    paper_option,
    click.option("--force", is_flag=True, help="Overwrite files that exist."),
)


def show(values: Mapping[str, Any], answers: Sequence[Any], text_of: Callable[[Any], str]) -> None:
    """Print answers as text or, with `--json`, as JSON, and save them where `--output` says."""
    if values["as_json"]:
        shown = [answer.to_json() for answer in answers]
        click.echo(json.dumps(shown[0] if len(shown) == 1 else shown, indent=1))
    else:
        click.echo(folded("\n\n".join(text_of(answer) for answer in answers)))
    if values["output"] is not None:
        save_answers(values["output"], answers, force=values["force"])
        wrote(values["output"])


def folded(text: str) -> str:
    """Return text with sentences folded at words where a terminal would cut them anywhere.

    Rows of tables, and lines that are to be copied, stay as they are; so does all text that goes
    into a file or a pipe.
    """
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, 40)
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.splitlines():
        if len(line) <= width or re.search(r"[^\s.] {2,}[^\s(]|^memplan |: memplan ", line):
            lines.append(line)
            continue
        indent = len(line) - len(line.lstrip())
        wrapper.subsequent_indent = " " * (indent and indent + 2)
        lines += wrapper.wrap(line)
    return "\n".join(lines)


def is_html(path: Path | None) -> bool:
    """Return whether a report's path asks for an HTML page; all others are PDF pages."""
    return path is not None and path.suffix.lower() in {".html", ".htm"}


def write_pages(
    values: Mapping[str, Any], lives: Sequence[BlockLives] = (), **answers: Any
) -> None:
    """Write the report that `--report` asks for.

    Args:
        values: a command's, with `report`, `paper` and `force`.
        lives: block by block, which only an HTML page shows.
        **answers: those of `write_report`.
    """
    path = values["report"]
    if path is None:
        return
    kept = {"command": typed_command(), "force": values["force"]}
    progress = Progress()
    progress(f"Writing {path.name}")
    try:
        if is_html(path):
            from memplan.html import write_html

            write_html(path, **answers, **kept, lives=lives)
        else:
            from memplan.report import write_report

            write_report(path, **answers, **kept, paper=values["paper"])
    finally:
        progress.done()
    wrote(path)


def typed_command() -> str:
    """Return the command line as the user typed it, to be kept in answers."""
    return shlex.join(["memplan", *sys.argv[1:]])


def wrote(path: Path) -> None:
    """Say where a file went, on standard error so that standard output stays the answer."""
    click.echo(f"Wrote {path}", err=True)
