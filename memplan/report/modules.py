"""Where activations live, and which modules ask for workspace."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import ProbeAnswer
from memplan.present.words import workload_line, workload_title
from memplan.report import theme
from memplan.report.axes import memory_axis
from memplan.report.frame import BOTTOM, LEFT, TOP, WIDTH, axes_at, new_page, shorten
from memplan.report.series import ModuleGroup, group_modules, largest_groups, readable_depth
from memplan.units import format_bytes

BARS = 15
CARDS_A_PAGE = 2
LABEL_WIDTH = 2.3


@theme.themed
def modules_figure(probes: Sequence[ProbeAnswer]) -> Figure:
    """Return a page: activation bytes by module, and beside it the workspace on each card.

    Args:
        probes: one to `CARDS_A_PAGE` answers for one workload at one reference batch.
    """
    first = probes[0]
    figure = new_page(
        f"Where activations live: {workload_title(first.workload)}, "
        f"micro-batch {first.reference_batch}",
        f"Tensors saved for backward by module, and the largest single workspace inside it, "
        f"{first.fit.origin}. {workload_line(first.workload)}",
    )
    depth = readable_depth(first.modules)
    groups = largest_groups(group_modules(first.modules, depth=depth), BARS)
    space = WIDTH - LABEL_WIDTH
    height = BOTTOM - TOP - 0.9
    main = axes_at(figure, LEFT + LABEL_WIDTH, TOP + 0.3, space * 0.55 - 1.1, height)
    draw_activations(main, groups, total_bytes=sum(m.activation_bytes for m in first.modules))
    pitch = space * 0.45 / len(probes)
    reach = max((m.workspace_bytes for p in probes for m in p.modules), default=0)
    for i, probe in enumerate(probes):
        left = LEFT + LABEL_WIDTH + space * 0.55 + i * pitch
        axes = axes_at(figure, left, TOP + 0.3, pitch - 0.65, height)
        on_card = {group.path: group for group in group_modules(probe.modules, depth=depth)}
        draw_workspace(axes, [on_card.get(group.path, group) for group in groups], reach=reach)
        title = shorten(probe.gpu.name, pitch - 0.1, theme.LABEL_POINTS, weight="bold")
        axes.set_title(title, fontsize=theme.LABEL_POINTS)
    return figure


def draw_activations(axes: Axes, groups: Sequence[ModuleGroup], *, total_bytes: int) -> None:
    """Draw one horizontal bar a group, the largest on top, with bytes and share.

    Args:
        axes: empty axes; module names are written to their left.
        groups: largest first.
        total_bytes: activation bytes of all modules.
    """
    rows = range(len(groups))
    values = [group.activation_bytes for group in groups]
    fill = theme.BAND_OF["activation"].fill
    axes.barh(rows, values, color=fill, height=0.72, label="activation")
    axes.set_ylim(max(len(groups), 1) - 0.4, -0.6)
    axes.set_yticks(rows, [_label(group) for group in groups])
    axes.tick_params(axis="y", length=0, labelcolor=theme.INK)
    memory_axis(axes, "x", "Activation memory", max([*values, 1]) * 1.02, num_ticks=6)
    axes.set_title("activation", fontsize=theme.LABEL_POINTS)
    for row, value in zip(rows, values, strict=True):
        share = value / total_bytes if total_bytes else 0.0
        _value_label(axes, row, value, f"{format_bytes(value)}  {share:.0%}")


def draw_workspace(axes: Axes, groups: Sequence[ModuleGroup], *, reach: int) -> None:
    """Draw each group's largest single workspace as a bar; `reach` is the axis' end, bytes."""
    rows = range(len(groups))
    values = [group.workspace_bytes for group in groups]
    fill = theme.BAND_OF["workspace"].fill
    axes.barh(rows, values, color=fill, height=0.72, label="workspace")
    axes.set_ylim(max(len(groups), 1) - 0.4, -0.6)
    axes.set_yticks([])
    memory_axis(axes, "x", "Workspace", max(reach, 1) * 1.02, num_ticks=3)
    for row, value in zip(rows, values, strict=True):
        if value:
            _value_label(axes, row, value, format_bytes(value))


def _value_label(axes: Axes, row: int, value: int, text: str) -> None:
    axes.annotate(
        text,
        (value, row),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=theme.SMALL_POINTS,
        annotation_clip=False,
    )


def _label(group: ModuleGroup) -> str:
    """Return path and type in the space beside the bars."""
    text = f"{group.path}  {group.type}" if group.type else group.path
    return shorten(text, LABEL_WIDTH - 0.1, theme.SMALL_POINTS + 0.5)
