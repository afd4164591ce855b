"""What an answer's charts draw: the same series as the PDF pages, as vectors in a page."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from memplan.answers import MEASURED, PREDICTED, PlanAnswer, ProbeAnswer
from memplan.html.charts import Series, chart_html
from memplan.html.markup import text
from memplan.present.run_record import RunRecord
from memplan.report.series import sorted_batches
from memplan.units import GIB, format_bytes

# A picture that is larger is left out of the page, which is to be sent about.
_MOST_PICTURE_BYTES = 2 << 20


def probe_chart(probe: ProbeAnswer) -> str:
    """Return memory over the batch, with the card's capacity; nothing of one batch."""
    rows = sorted_batches(probe)
    sizes = [row.micro_batch_size for row in rows]
    columns = {
        "device-used": [row.device_used_peak_bytes / GIB for row in rows],
        "reserved": [row.reserved_peak_bytes / GIB for row in rows],
        "allocated": [row.allocated_peak_bytes / GIB for row in rows],
    }
    if len(rows) < 2:
        return ""
    capacity = probe.gpu.capacity_bytes
    return chart_html(
        "Peak memory by micro-batch (predicted)",
        [Series(name=name, xs=sizes, ys=values) for name, values in columns.items()],
        x_name="Micro-batch (images)",
        y_name="Peak memory (GiB)",
        whole=True,
        limit=(f"capacity {format_bytes(capacity)}", capacity / GIB),
    )


def plan_chart(plan: PlanAnswer) -> str:
    """Return speed over memory of the settings that a plan was chosen from."""
    settings = sorted(plan.alternatives, key=lambda one: one.predicted.device_used_peak_bytes)
    if len(settings) < 2:
        return ""
    memory = [one.predicted.device_used_peak_bytes / GIB for one in settings]
    chosen = plan.predicted
    return chart_html(
        "What more memory buys (predicted)",
        [
            Series(
                name="settings that no other beats in both",
                xs=memory,
                ys=[one.predicted.images_per_second for one in settings],
            ),
            Series(
                name="the plan",
                xs=[chosen.device_used_peak_bytes / GIB],
                ys=[chosen.images_per_second],
            ),
        ],
        x_name="Device-used (GiB)",
        y_name="Images a second",
    )


def run_charts(run: RunRecord) -> Iterator[str]:
    """Yield scores and losses over epochs, and memory over steps, as far as they were recorded."""
    groups = {
        "Scores on validation (measured)": (run.scores, "Score"),
        "Training losses (measured)": (run.training_losses, "Loss"),
        "Validation losses (measured)": (run.validation_losses, "Loss"),
    }
    for title, (columns, y_name) in groups.items():
        series = [
            Series(name=name.rsplit("/", 1)[-1], xs=run.epochs, ys=values)
            for name, values in columns.items()
        ]
        yield chart_html(title, series, x_name="Epoch", y_name=y_name, whole=True)
    yield chart_html(
        "Memory, measured and predicted",
        _memory_series(run),
        x_name="Step",
        y_name="Memory (GiB)",
        whole=True,
    )


def _memory_series(run: RunRecord) -> list[Series]:
    """Return like beside like, the quantities first that hold most."""
    order = ("device_used", "reserved", "allocated")
    known = list(dict.fromkeys(quantity for _, quantity in run.memory))
    quantities = sorted(known, key=lambda one: order.index(one) if one in order else len(order))
    return [
        Series(
            name=f"{quantity.replace('_', '-')} ({origin})",
            xs=run.steps,
            ys=[value / GIB for value in run.memory[origin, quantity]],
        )
        for quantity in quantities
        for origin in (MEASURED, PREDICTED)
        if (origin, quantity) in run.memory
    ]


def run_pictures(run: RunRecord) -> Iterator[str]:
    """Yield the pictures that a run left, within the page."""
    for path, what in run.pictures:
        try:
            content = path.read_bytes() if path.stat().st_size <= _MOST_PICTURE_BYTES else b""
        except OSError:
            content = b""
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            coded = base64.b64encode(content).decode()
            yield (
                f'<figure class="picture"><figcaption>{text(what)}</figcaption>'
                f'<img alt="{text(what)}" src="data:image/png;base64,{coded}"></figure>'
            )
