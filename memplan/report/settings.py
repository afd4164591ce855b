"""The recommended setting of each card, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from memplan.answers import ProbeAnswer, Setting
from memplan.present.words import workload_line, workload_title
from memplan.report import theme
from memplan.report.frame import LEFT, TOP, WIDTH, draw_table, new_page, table_width, write
from memplan.spec import LEVERS
from memplan.units import format_seconds, gib, three_digits

CARDS_A_PAGE = 4


@theme.themed
def settings_figure(probes: Sequence[ProbeAnswer]) -> Figure:
    """Return a page: the recommended setting as a table with one column a card.

    Args:
        probes: one to `CARDS_A_PAGE` answers.
    """
    first = probes[0]
    figure = new_page(
        f"Recommended settings: {workload_title(first.workload)}",
        f"The fastest of the settings that were tried and fit each card, {first.fit.origin}. "
        f"{workload_line(first.workload)}",
    )
    header, rows = settings_table(probes)
    size = theme.LEAD_POINTS
    while table_width(header, rows, size=size, gap=0.5) > WIDTH and size > theme.SMALL_POINTS:
        size -= 0.5
    left = LEFT + max(0.0, WIDTH - table_width(header, rows, size=size, gap=0.5)) / 2
    end = draw_table(
        figure, left, TOP + 0.2, header, rows, align="l" + "r" * len(probes), size=size, gap=0.5
    )
    note = "Headroom is the card's capacity minus the device-used peak."
    write(figure, left, end + 0.2, note, colour=theme.QUIET_INK)
    return figure


def settings_table(probes: Sequence[ProbeAnswer]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows; a card on which nothing fits has dashes."""
    columns = [_column(probe) for probe in probes]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return ["", *(probe.gpu.name for probe in probes)], rows


def _column(probe: ProbeAnswer) -> dict[str, str]:
    """Return one card's cells by row name."""
    setting = probe.recommended
    cells = {
        "Capacity (GiB)": gib(probe.gpu.capacity_bytes),
        "Largest micro-batch that fits": str(probe.largest_batch or "none"),
    }
    if setting is None:
        return {**cells, **dict.fromkeys(_ROWS, "–")}  # noqa: RUF001
    return {**cells, **dict(zip(_ROWS, _cells(setting, probe.gpu.capacity_bytes), strict=True))}


_ROWS = (
    "Micro-batch",
    "Accumulation steps",
    "Devices",
    "Effective batch",
    "Nominal batch",
    *(lever.column for lever in LEVERS if lever.tried),
    "Predicted peak allocated (GiB)",
    "Predicted peak reserved (GiB)",
    "Predicted peak device-used (GiB)",
    "Predicted headroom (GiB)",
    "Predicted images/s",
    "Predicted time of an epoch",
)


def _cells(setting: Setting, capacity_bytes: int) -> tuple[str, ...]:
    """Return a setting's cells in the order of `_ROWS`."""
    predicted = setting.predicted
    seconds = predicted.epoch_seconds
    return (
        str(setting.split.micro_batch_size),
        str(setting.split.accumulation_steps),
        str(setting.split.devices),
        str(setting.split.effective_batch_size),
        str(setting.nominal_batch_size),
        *(lever.cell(getattr(setting.spec, lever.name)) for lever in LEVERS if lever.tried),
        gib(predicted.allocated_peak_bytes),
        gib(predicted.reserved_peak_bytes),
        gib(predicted.device_used_peak_bytes),
        gib(capacity_bytes - predicted.device_used_peak_bytes),
        three_digits(predicted.images_per_second),
        "data set not given" if seconds is None else format_seconds(seconds),
    )
