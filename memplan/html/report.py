"""The HTML report: the sections of each answer, its numbers, and timelines to zoom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from memplan._version import __version__
from memplan.answers import PlanAnswer, ProbeAnswer
from memplan.blocks import BlockLives
from memplan.errors import BadInputError
from memplan.files import write_text
from memplan.html.markup import page, text
from memplan.html.pictures import plan_chart, probe_chart, run_charts, run_pictures
from memplan.html.sections import bar_html, numbers_html, sections_html
from memplan.html.timeline import lives_html, probe_timeline_html, script_timeline_html
from memplan.present.diff import Holdings, diff_headline, diff_numbers, diff_sections
from memplan.present.plan import plan_numbers, plan_sections
from memplan.present.probe import largest_tensors, probe_numbers, probe_sections
from memplan.present.run import run_headline, run_numbers, run_sections
from memplan.present.run_record import RunRecord, read_run
from memplan.present.script import script_headline, script_numbers, script_sections
from memplan.present.section import Section
from memplan.present.words import card_name, workload_line, workload_title
from memplan.script_answer import ScriptAnswer


def write_html(
    path: Path,
    *,
    probes: Sequence[ProbeAnswer] = (),
    plans: Sequence[PlanAnswer] = (),
    run_folder: Path | None = None,
    scripts: Sequence[ScriptAnswer] = (),
    lives: Sequence[BlockLives] = (),
    command: str,
    force: bool = False,
) -> Path:
    """Write the report of the answers given as one file that loads nothing, and return its path.

    Args:
        path: the HTML file; its folder is made where it is missing.
        probes: answers of `memplan probe`, one a card.
        plans: answers of `memplan plan`, one a card.
        run_folder: what `memplan train` left.
        scripts: answers of `memplan run`.
        lives: of the scripts and then of the probes, in their order, block by block; they take
            the place of saved samples.
        command: the command that asked for the report, stated at its end.
        force: whether an existing file is overwritten.

    Raises:
        BadInputError: there is nothing to report, the file exists and `force` is False, it
            cannot be written, or the run folder cannot be read.
    """
    if not (probes or plans or scripts or lives) and run_folder is None:
        raise BadInputError("There is nothing to report: give a probe, a plan or a run folder.")
    run = None if run_folder is None else read_run(run_folder)
    figures = iter(_figures(lives))
    body = [
        *(part for script in scripts for part in _script(script, figures)),
        *([] if run is None else _run(run, plans[0] if plans else None)),
        *(part for plan in plans for part in _plan(plan)),
        *(part for probe in probes for part in _probe(probe, figures)),
        *figures,
        *_provenance([*probes, *plans, *scripts], command),
    ]
    title = _title(probes, plans, scripts, run, lives)
    _save(path, page(title, [f"<h1>{text(title)}</h1>", *body]), force=force)
    return path


def write_replay_html(
    path: Path,
    title: str,
    sections: Sequence[Section],
    lives: Sequence[BlockLives],
    *,
    command: str,
    force: bool = False,
) -> Path:
    """Write a replay's sections and its blocks, and return the path.

    Raises:
        BadInputError: the file exists and `force` is False, or it cannot be written.
    """
    body = [*_figures(lives), *sections_html(sections), *_provenance([], command)]
    _save(path, page(title, [f"<h1>{text(title)}</h1>", *body]), force=force)
    return path


def write_diff_html(
    path: Path,
    pairs: Sequence[tuple[Holdings, Holdings]],
    *,
    command: str,
    force: bool = False,
) -> Path:
    """Write what grew from the first to the second of each pair, and return the path.

    Raises:
        BadInputError: the file exists and `force` is False, or it cannot be written.
    """
    body: list[str] = []
    for one, other in pairs:
        body.append(f"<h2>{text(diff_headline(one, other))}</h2>")
        body.append(numbers_html(diff_numbers(one, other)))
        body += sections_html(diff_sections(one, other))
    title = "What grew" if len(pairs) != 1 else diff_headline(*pairs[0])
    body += _provenance([], command)
    _save(path, page(title, [f"<h1>{text(title)}</h1>", *body]), force=force)
    return path


def _save(path: Path, document: str, *, force: bool) -> None:
    if path.exists() and not force:
        raise BadInputError(f"{path} exists. Give another --report, or --force to overwrite it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, document)
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}.") from None


def _title(
    probes: Sequence[ProbeAnswer],
    plans: Sequence[PlanAnswer],
    scripts: Sequence[ScriptAnswer],
    run: RunRecord | None,
    lives: Sequence[BlockLives],
) -> str:
    """Return what the report is about, the answer where there is one."""
    if scripts:
        return script_headline(scripts[0]).split("\n", 1)[0]
    if run is not None:
        return f"{run.folder.name}: {run_headline(run)}"
    answers: list[ProbeAnswer | PlanAnswer] = [*plans, *probes]
    names = list(dict.fromkeys(workload_title(one.workload) for one in answers))
    return f"Training memory: {', '.join(names) or lives[0].title}"


def _probe(probe: ProbeAnswer, figures: Iterator[str]) -> Iterator[str]:
    yield f"<h2>Probe: {text(workload_title(probe.workload))}, {text(card_name(probe.gpu))}</h2>"
    yield f'<p class="quiet">{text(workload_line(probe.workload))}</p>'
    yield numbers_html(probe_numbers(probe))
    yield bar_html(probe.categories_at_peak)
    yield next(figures, "") or probe_timeline_html(probe, f"probe-{_slug(probe.gpu.name)}")
    yield probe_chart(probe)
    tensors = largest_tensors(probe)
    yield from sections_html([*probe_sections(probe), *([tensors] if tensors.text else [])])


def _plan(plan: PlanAnswer) -> Iterator[str]:
    yield f"<h2>Plan: {text(workload_title(plan.workload))}, {text(card_name(plan.gpu))}</h2>"
    yield f'<p class="quiet">{text(workload_line(plan.workload))}</p>'
    yield numbers_html(plan_numbers(plan))
    yield plan_chart(plan)
    yield from sections_html(plan_sections(plan))


def _run(run: RunRecord, plan: PlanAnswer | None) -> Iterator[str]:
    yield f"<h2>Run: {text(run.folder.name)}</h2>"
    yield numbers_html(run_numbers(run, plan))
    yield '<div class="charts">'
    yield from run_charts(run)
    yield "</div>"
    yield from sections_html(run_sections(run, plan))
    yield from run_pictures(run)


def _script(script: ScriptAnswer, figures: Iterator[str]) -> Iterator[str]:
    yield f"<h2>{text(script.command)}</h2>"
    yield numbers_html(script_numbers(script))
    yield bar_html(script.categories_at_peak)
    yield next(figures, "") or script_timeline_html(script, "script")
    yield from sections_html(script_sections(script))


def _figures(lives: Sequence[BlockLives]) -> list[str]:
    return [lives_html(one, f"blocks-{number}") for number, one in enumerate(lives)]


def _slug(name: str) -> str:
    """Return a name as part of an id, which holds no spaces."""
    return "".join(character if character.isalnum() else "-" for character in name)


def _provenance(
    answers: Sequence[ProbeAnswer | PlanAnswer | ScriptAnswer], command: str
) -> Iterator[str]:
    """Yield where the figures come from."""
    yield "<h2>Where this comes from</h2>"
    yield f"<p>Made by <code>{text(command)}</code>, memplan {text(__version__)}.</p>"
    versions = dict.fromkeys(tuple(sorted(answer.versions.items())) for answer in answers)
    for one in versions:
        yield f"<p>{text(', '.join(f'{name} {version}' for name, version in one))}</p>"
    cards = dict.fromkeys(
        (answer.gpu.name, answer.gpu.source)
        for answer in answers
        if not isinstance(answer, ScriptAnswer)
    )
    yield from (f"<p>{text(name)}: {text(source)}</p>" for name, source in cards)
