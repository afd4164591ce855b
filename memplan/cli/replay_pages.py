"""What `memplan replay` writes beside its answer: a report, and a snapshot for PyTorch's viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memplan.advise.life_blocks import life_blocks
from memplan.blocks import BlockLives
from memplan.cli.common import is_html, typed_command, wrote
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.device.life import Life
from memplan.device.replay import Simulator, replayed
from memplan.errors import BadInputError
from memplan.present.diff import Holdings
from memplan.present.section import Section
from memplan.tape import Tape
from memplan.trace.snapshot_export import snapshot_content, write_snapshot


def tape_blocks(
    tape: Tape, card: Card, settings: AllocatorSettings, life: Life, snapshot: Path | None
) -> BlockLives:
    """Return a tape's life on a card block by block, and write it as a snapshot where asked to.

    Raises:
        BadInputError: the snapshot cannot be written.
    """
    found = replayed(tape, card, settings, life=life)
    about = tape.description
    simulator = Simulator(
        card,
        settings,
        torch_version=about.versions.get("torch", "2.11.0"),
        cudnn_benchmark=about.spec.cudnn_benchmark,
        cublas_workspace_config=about.cublas_workspace_config,
    )
    plans = simulator.fallback(found.program, tape.convolutions)
    lives = life_blocks(found.program, tape, found.sizes, simulator, found.peaks, fallback=plans)
    if snapshot is not None:
        sizes = plans.applied(found.sizes)
        content = snapshot_content(found.program, sizes, lives, settings, simulator.release)
        try:
            write_snapshot(snapshot, content)
        except OSError as error:
            raise BadInputError(f"{snapshot} cannot be written: {error.strerror}.") from None
        wrote(snapshot)
    return lives


def write_replay(
    path: Path, title: str, sections: Sequence[Section], lives: Sequence[BlockLives]
) -> None:
    """Write a replay's sections as PDF pages, or with its blocks as an HTML page.

    Raises:
        BadInputError: it cannot be written.
    """
    if is_html(path):
        from memplan.html.report import write_replay_html

        write_replay_html(path, title, sections, lives, command=typed_command(), force=True)
    else:
        from memplan.report.pages import save_pages
        from memplan.report.sections_page import sections_figures

        save_pages(path, sections_figures(title, typed_command(), sections))
    wrote(path)


def write_comparison(path: Path, before: Holdings, now: Holdings) -> None:
    """Write what grew between two recordings as PDF pages or an HTML page.

    Raises:
        BadInputError: it cannot be written.
    """
    pairs = [(before, now)]
    if is_html(path):
        from memplan.html.report import write_diff_html

        write_diff_html(path, pairs, command=typed_command(), force=True)
    else:
        from memplan.report.diff_pages import write_diff

        write_diff(path, pairs)
    wrote(path)
