"""Predicts every row and writes tables, csv, picture and the document's tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from benchmarks.card_truth import cards, convolutions, page, picture, shipped, studies, ultralytics
from benchmarks.card_truth.row import Row
from benchmarks.card_truth.snapshots import snapshots
from benchmarks.common import RESULTS, require
from memplan.trace.fake_cuda import warm_up

SOURCES: dict[str, Callable[[], Iterator[Row]]] = {
    "convolutions": convolutions.convolutions,
    "yolov9": studies.yolov9_logs,
    "ultralytics": ultralytics.ultralytics_logs,
    "xmem": studies.xmem_records,
    "plain": cards.plain_scripts,
    "timm": cards.timm_script,
    "ddp": cards.in_data_parallel,
}


@click.command()
@click.option(
    "--snapshots",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Also replay the PyTorch memory snapshots (*.pickle, *.pkl) of this folder.",
)
@click.option(
    "--only",
    type=click.Choice(list(SOURCES)),
    multiple=True,
    help="Predict these and print them; nothing is written.",
)
def main(folder: Path | None, only: tuple[str, ...]) -> None:
    """Predict every row; without --only, write the results and the document's tables."""
    if not only:
        require("timm")
    warm_up()
    start = time.perf_counter()
    rows = [row for name in only or SOURCES for row in _shown(SOURCES[name]())]
    rows += list(_shown(snapshots(folder))) if folder is not None else []
    if only:
        return
    if folder is None:  # replays of snapshots are kept: not everybody has the files
        known = RESULTS / f"{page.NAME}.csv"
        rows += [row for row in page.read_csv(known) if "snapshots" in row.kind]
    page.write_results(rows, time.perf_counter() - start)
    shipped.write_shipped(rows)
    picture.save(RESULTS / f"{page.NAME}.png", rows)
    text = page.DOCUMENT.read_text(encoding="utf-8")
    page.DOCUMENT.write_text(page.with_parts(text, page.written_parts(rows)), encoding="utf-8")
    click.echo(f"Wrote {RESULTS / page.NAME}.md, .csv and .png, and {page.DOCUMENT}")


def _shown(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        said = page.percent(row.error) if row.predicted_bytes else f"not predicted: {row.remark}"
        click.echo(f"{row.kind}: {row.case}, {row.card}: {said}", err=True)
        yield row


if __name__ == "__main__":
    main()
