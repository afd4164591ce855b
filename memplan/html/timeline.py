"""The timeline of an HTML report: what the page's script draws, with words for those without it."""

from __future__ import annotations

from typing import Any

import numpy as np

from memplan.answers import ProbeAnswer, Timeline
from memplan.blocks import BlockLives, without_small
from memplan.html.markup import data, text
from memplan.report.theme import BAND_OF, BANDS
from memplan.script_answer import ScriptAnswer, ScriptTimeline
from memplan.units import format_bytes

# So many blocks a page opens at once with; see benchmarks/html_speed.py.
MOST_BLOCKS = 100_000
_HATCHES = {"temporary": "lines", "cached": "dots"}
_OUTSIDE = ("cached", "context")
_HELP = (
    "Point at a block to read what it is. Drag over a stretch to see it closer, or use the "
    "buttons; the wheel zooms while the picture has the focus. Keys: left and right move the "
    "cursor (with shift faster), up and down go through the stack, + and - zoom, 0 shows all, p "
    "goes to the peak."
)
_CONTROLS = (
    ("in", "Closer"), ("out", "Further"), ("left", "Earlier"), ("right", "Later"),
    ("peak", "To the peak"), ("whole", "Whole"),
)  # fmt: skip


def lives_html(lives: BlockLives, identity: str) -> str:
    """Return the figure of blocks that can be pointed at one by one.

    Args:
        lives: of any length; more than `MOST_BLOCKS` are thinned.
        identity: of the figure, unique in its page.
    """
    lives = without_small(lives, MOST_BLOCKS)
    allocated = lives.allocated_bytes()
    peak = int(allocated.argmax()) if len(allocated) else 0
    words = (
        f"Memory over {lives.num_events:,} events of {lives.title}, {lives.origin}: "
        f"{format_bytes(int(allocated.max(initial=0)))} allocated at the peak, event {peak + 1:,}."
    )
    return _figure(
        identity, f"Memory, block by block: {lives.title}", words, _facts(lives), lives.notes
    )


def _facts(lives: BlockLives) -> dict[str, Any]:
    """Return lives as the script reads them: blocks in the order they are stacked."""
    bands = _stacked(lives.bands)
    place = {name: index for index, name in enumerate(bands)}
    band_of = np.array([place[label.band] for label in lives.labels], dtype=np.int64)
    order = np.lexsort((lives.made, band_of[lives.label] if len(band_of) else lives.label))
    held = lives.reserved_bytes
    changes = np.flatnonzero(np.diff(held, prepend=-1)) if len(held) else held
    outside = [*(["cached"] if len(held) else []), *(["context"] if lives.context_bytes else [])]
    columns = {"made": lives.made, "freed": lives.freed, "bytes": lives.num_bytes}
    return {
        "unit": "event",
        "n": lives.num_events,
        "origin": lives.origin,
        "bands": [_band(name, index) for index, name in enumerate((*bands, *outside))],
        "blocks": {
            **{name: column[order].tolist() for name, column in columns.items()},
            "label": lives.label[order].tolist(),
        },
        "labels": [
            [place[one.band], one.tensor, one.module, one.operator, one.line]
            for one in lives.labels
        ],
        "reserved": [[int(at), int(held[at])] for at in changes],
        "context": lives.context_bytes,
        "capacity": lives.capacity_bytes,
        "phases": lives.phases,
    }


def _stacked(names: tuple[str, ...]) -> list[str]:
    """Return names of bands from the bottom up: categories in their fixed order, others after."""
    known = [band.name for band in BANDS if band.name in names]
    return [*known, *(name for name in names if name not in BAND_OF)]


def _band(name: str, index: int) -> dict[str, Any]:
    """Return how a band looks; one that is no category takes the colours in turn."""
    band = BAND_OF.get(name, BANDS[index % 6])
    return {
        "name": name,
        "fill": band.fill,
        "hatch": _HATCHES.get(name, ""),
        "outside": name in _OUTSIDE,
    }


def probe_timeline_html(probe: ProbeAnswer, identity: str) -> str:
    """Return the figure of a saved probe: its samples, without single blocks."""
    facts = _sampled(probe.timeline) | {
        "capacity": probe.gpu.capacity_bytes,
        "phases": probe.timeline.periods,
    }
    title = f"Memory over one life: micro-batch {probe.reference_batch}, {probe.gpu.name}"
    words = f"{title}, {probe.timeline.origin}, bytes by category at {facts['n']} samples."
    note = "Samples of a saved answer: `memplan replay TAPE --report PAGE.html` has every block."
    return _figure(identity, title, words, facts, (note,))


def script_timeline_html(answer: ScriptAnswer, identity: str) -> str:
    """Return the figure of a saved script: its samples, without single blocks."""
    ends = answer.timeline.step_ends
    starts = [0, *ends[:-1]] if ends else []
    facts = _sampled(answer.timeline) | {
        "capacity": answer.capacity_bytes,
        "phases": [["", f"step_{step + 1}", start] for step, start in enumerate(starts)],
        "origin": answer.origin,
    }
    title = f"Allocated memory over the script, {answer.title}"
    words = f"{title}, {answer.origin}, bytes by category at {facts['n']} samples."
    note = (
        "Samples of a saved answer: `memplan run --report PAGE.html` has every block, and so has "
        "`memplan replay` of what `memplan run --snapshot` wrote."
    )
    return _figure(identity, title, words, facts, (note,))


def _sampled(timeline: Timeline | ScriptTimeline) -> dict[str, Any]:
    names = _stacked(tuple(timeline.categories))
    rows = [timeline.categories[name] for name in names]
    return {
        "unit": "sample",
        "n": len(rows[0]) if rows else 0,
        "origin": getattr(timeline, "origin", ""),
        "bands": [
            _band(name, index) | {"bytes": row}
            for index, (name, row) in enumerate(zip(names, rows, strict=True))
        ],
        "reserved": [],
        "context": 0,
    }


def _figure(
    identity: str, title: str, words: str, facts: dict[str, Any], notes: tuple[str, ...]
) -> str:
    """Return a canvas with its data, controls, key and words."""
    if not facts["n"]:
        return ""
    buttons = "".join(
        f'<button type="button" data-act="{act}">{name}</button>' for act, name in _CONTROLS
    )
    keys = "".join(
        f'<li><i style="background:{band["fill"]}"></i>{text(band["name"].replace("_", " "))}</li>'
        for band in facts["bands"]
    )
    said = "".join(f'<p class="quiet">{text(note)}</p>' for note in notes)
    return (
        f'<figure class="timeline" id="{text(identity)}"><h3>{text(title)}</h3>'
        f'<div class="controls">{buttons}</div>'
        f'<canvas role="img" aria-label="{text(words)}" aria-describedby="{text(identity)}-help">'
        f"{text(words)}</canvas>"
        f'<div class="told" role="status"></div><ul class="key">{keys}</ul>'
        f'<figcaption><p>{text(words)}</p><p class="help" id="{text(identity)}-help">{_HELP}</p>'
        f"{said}<noscript><p>The picture needs scripts; the tables have its facts.</p></noscript>"
        f"</figcaption>{data(f'{identity}-data', facts)}</figure>"
    )
