"""The rows of whole trainings that reports show users, as the package ships them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.card_truth.row import Row
from memplan.device.catalogue import cards

SHIPPED = Path(__file__).parents[2] / "memplan/present/published.csv"
# What a study calls its cards, and the catalogue's names.
_NAMES = {
    "T4": "t4",
    "A100 80GB PCIe": "a100-80gb",
    "A100-SXM4-40GB": "a100-40gb",
    "A100 40 GB": "a100-40gb",
    "V100 32 GB": "v100-32gb",
    "RTX 3060": "rtx-3060-12gb",
    "RTX 4060": "rtx-4060",
}
_NO_TRAINING = ("Convolution workspaces", "Memory snapshots")
_COLUMNS = (
    "study", "case", "card", "compute_capability", "figure", "measured_bytes", "predicted_bytes",
    "ran_out", "predicted_to_run_out", "source",
)  # fmt: skip


def shipped_text(rows: Sequence[Row]) -> str:
    """Return the csv of whole trainings on named cards that were predicted.

    Rows whose prediction is an upper bound by design are left out: they say nothing of a usual one.
    """
    capabilities = {card.name: card.compute_capability for card in cards()}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        name = _NAMES.get(row.card)
        is_compared = row.error is not None or (
            row.ran_out and row.predicted_to_run_out is not None
        )
        if name is None or row.is_bound or row.kind.startswith(_NO_TRAINING) or not is_compared:
            continue
        major, minor = capabilities[name]
        writer.writerow(
            [
                row.kind, row.case, name, f"{major}.{minor}", row.figure, row.measured_bytes,
                row.predicted_bytes, row.ran_out, bool(row.predicted_to_run_out), row.source,
            ]
        )  # fmt: skip
    return file.getvalue()


def write_shipped(rows: Sequence[Row]) -> None:
    """Write the table that the package ships."""
    SHIPPED.write_text(shipped_text(rows), encoding="utf-8")
