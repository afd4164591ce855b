"""The PDF report: pages in order, written so that the same answers give the same bytes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from memplan._version import __version__
from memplan.answers import PlanAnswer, ProbeAnswer, WorkloadFacts
from memplan.errors import BadInputError
from memplan.present.plan import plan_sections
from memplan.present.probe import probe_sections
from memplan.present.run_record import RunRecord, read_run
from memplan.present.section import Section
from memplan.present.what_if import WHAT_IF
from memplan.present.words import card_name, workload_line, workload_title
from memplan.report import (
    batches,
    categories,
    modules,
    plan_cards,
    plan_inside,
    settings,
    theme,
    what_if_page,
)
from memplan.report.accuracy_page import accuracy_figure
from memplan.report.alternatives import alternatives_figure
from memplan.report.answers_page import answers_figures
from memplan.report.choice_page import choice_figure
from memplan.report.facts_page import facts_figures
from memplan.report.frame import number_pages
from memplan.report.risk_page import risk_figure
from memplan.report.run_pages import run_figures
from memplan.report.script_pages import script_figures
from memplan.report.sections_page import sections_figures
from memplan.report.timeline import timeline_figure
from memplan.report.waterfall import waterfall_figure
from memplan.script_answer import ScriptAnswer

_T = TypeVar("_T")
_Kind = tuple[list[list[ProbeAnswer]], int, Callable[[Sequence[ProbeAnswer]], Figure]]

# A fixed date: two reports of the same answers are the same file.
_DATE = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def write_report(
    path: Path,
    *,
    probes: Sequence[ProbeAnswer] = (),
    plans: Sequence[PlanAnswer] = (),
    run_folder: Path | None = None,
    scripts: Sequence[ScriptAnswer] = (),
    command: str,
    paper: str | None = None,
    force: bool = False,
) -> Path:
    """Write the report of the answers given and return its path.

    Args:
        path: the PDF file; its folder is made where it is missing.
        probes: answers of `memplan probe`, one a card.
        plans: answers of `memplan plan`, one a card.
        run_folder: what `memplan train` left, with `results.csv` and `memory.csv`.
        scripts: answers of `memplan run`.
        command: the command that asked for the report, stated on the last page.
        paper: `a4` or `letter`; None takes what this place uses.
        force: whether an existing file is overwritten.

    Raises:
        BadInputError: there is nothing to report, the file exists and `force` is False, it
            cannot be written, or the run folder cannot be read.
    """
    if not probes and not plans and not scripts and run_folder is None:
        raise BadInputError("There is nothing to report: give a probe, a plan or a run folder.")
    if path.exists() and not force:
        raise BadInputError(f"{path} exists. Give another --report, or --force to overwrite it.")
    run = None if run_folder is None else read_run(run_folder)
    with theme.on_paper(paper):
        figures = report_figures(probes, plans, run, command, scripts)
    save_pages(path, figures)
    return path


@theme.themed
def report_figures(
    probes: Sequence[ProbeAnswer],
    plans: Sequence[PlanAnswer],
    run: RunRecord | None,
    command: str,
    scripts: Sequence[ScriptAnswer] = (),
) -> list[Figure]:
    """Return every page of the report in order, numbered."""
    figures = [figure for script in scripts for figure in script_figures(script)]
    if not probes and not plans and run is None:
        number_pages(figures, f"memplan {__version__}")
        return figures
    if run is not None:
        figures += run_figures(run, plans[0] if plans else None)
    if probes or plans:
        # A run's own plan is told after the run; its page one would say the same again.
        figures += [] if run is not None and not probes else answers_figures(probes, plans)
        drawn = [*_probe_figures(probes), *_plan_figures(plans)]
        # Words may go on under a run's facts, but not under figures.
        last = figures[-1] if run is not None and not drawn else None
        words = _in_words(probes, plans, last)
        figures += [*drawn, *words]
        after = words[-1] if words else last
    else:
        after = figures[-1]
    figures += facts_figures(probes, plans, command, after=after)
    number_pages(figures, f"memplan {__version__}")
    return figures


def _in_words(
    probes: Sequence[ProbeAnswer], plans: Sequence[PlanAnswer], last: Figure | None
) -> list[Figure]:
    """Return pages of all that each answer says, as the terminal shows it.

    Args:
        probes: the answers.
        plans: the answers.
        last: a page of words before them that takes what it has room for.
    """
    figures: list[Figure] = []
    answers: list[PlanAnswer | ProbeAnswer] = [*plans, *probes]
    for answer in answers:
        if isinstance(answer, PlanAnswer):
            kind, sections = "Plan", plan_sections(answer)
        else:
            kind, sections = "Probe", _not_drawn(probe_sections(answer))
        title = f"{kind}: {workload_title(answer.workload)}, {card_name(answer.gpu)}"
        figures += sections_figures(title, workload_line(answer.workload), sections, after=last)
        last = figures[-1] if figures else last
    return figures


def _not_drawn(sections: Sequence[Section]) -> list[Section]:
    """Return sections without those of which another page shows every cell."""
    return [one for one in sections if one.title != WHAT_IF]


def _probe_figures(probes: Sequence[ProbeAnswer]) -> Iterator[Figure]:
    """Yield the pages about probes: a life a card, then cards of one workload side by side."""
    for probe in probes:
        if probe.timeline.categories:
            yield timeline_figure(probe)
    alike = list(_alike(probes))
    with_modules = [some for group in alike if (some := [p for p in group if p.modules])]
    with_changes = [some for group in alike if (some := [p for p in group if p.what_if])]
    kinds: list[_Kind] = [
        (alike, batches.PANELS_A_PAGE, batches.batches_figure),
        (with_modules, modules.CARDS_A_PAGE, modules.modules_figure),
        (with_modules, len(probes), lambda probes: waterfall_figure(probes[0])),
        (alike, categories.CARDS_A_PAGE, categories.categories_figure),
        (with_changes, what_if_page.CARDS_A_PAGE, what_if_page.what_if_figure),
        (alike, settings.CARDS_A_PAGE, settings.settings_figure),
    ]
    for groups, cards_a_page, draw in kinds:
        for group in groups:
            yield from map(draw, _portions(group, cards_a_page))
    kinds_of_card = {probe.gpu.compute_capability or probe.gpu.name: probe.gpu for probe in probes}
    yield from map(accuracy_figure, kinds_of_card.values())


def _plan_figures(plans: Sequence[PlanAnswer]) -> Iterator[Figure]:
    """Yield the pages about plans: each plan's own, then cards of one workload side by side."""
    for plan in plans:
        if plan.alternatives and plan.share_fraction is None:
            yield alternatives_figure(plan)
        if plan.phase_peaks:
            yield plan_inside.phases_figure(plan)
        if plan.block_savings:
            yield plan_inside.blocks_figure(plan)
        if plan.risk is not None:
            yield risk_figure(plan)
        if plan.cards is not None:
            yield choice_figure(plan)
    groups: dict[tuple[str, int], list[PlanAnswer]] = {}
    for plan in plans:
        groups.setdefault((plan.workload.name, plan.workload.img), []).append(plan)
    for group in groups.values():
        if len(group) > 1:
            yield from map(plan_cards.cards_figure, _portions(group, plan_cards.CARDS_A_PAGE))


def _alike(probes: Sequence[ProbeAnswer]) -> Iterator[list[ProbeAnswer]]:
    """Yield probes of one workload at one reference batch together."""
    groups: dict[tuple[WorkloadFacts, int], list[ProbeAnswer]] = {}
    for probe in probes:
        groups.setdefault((probe.workload, probe.reference_batch), []).append(probe)
    yield from groups.values()


def _portions(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Yield the items, at most `size` at a time, in portions as even as can be."""
    if not items:
        return
    num_portions = -(-len(items) // size)
    for i in range(num_portions):
        start, stop = (len(items) * j // num_portions for j in (i, i + 1))
        yield items[start:stop]


@theme.themed
def save_pages(path: Path, figures: Sequence[Figure], title: str = "memplan report") -> None:
    """Write the pages into one vector PDF with fixed dates.

    Raises:
        BadInputError: the file cannot be written.
    """
    facts = {
        "Title": title,
        "Creator": f"memplan {__version__}",
        "Producer": "matplotlib",
        "CreationDate": _DATE,
        "ModDate": _DATE,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with PdfPages(path, metadata=facts) as pdf:
            for figure in figures:
                pdf.savefig(figure)
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}.") from None
