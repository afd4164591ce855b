"""What would change a probe's answer: each change beside the training as asked."""

from __future__ import annotations

from memplan.answers import ProbeAnswer, WhatIf
from memplan.present.section import Section, Table
from memplan.spec import LEVERS, Lever
from memplan.units import gib, three_digits

AS_ASKED = "as asked"
WHAT_IF = "What would change it"
"""Title of the section."""


def ranked(answer: ProbeAnswer) -> list[WhatIf]:
    """Return the training as asked, then changes: those that save most first, refused ones last."""
    if not answer.what_if:
        return []
    asked, *changed = answer.what_if
    return [asked, *sorted(changed, key=lambda one: (one.refusal, one.device_used_peak_bytes))]


def what_if_section(answer: ProbeAnswer) -> Section:
    """Return what each change would save at the reference batch; nothing where not asked."""
    rows = ranked(answer)
    if not rows:
        return Section(title=WHAT_IF)
    asked = rows[0]
    return Section(
        title=WHAT_IF,
        table=Table(
            caption=f"{WHAT_IF}, at batch {asked.micro_batch_size} (device-used, {asked.origin})",
            header=("Change", "GiB", "Saves", "Fits", "Largest", "Images/s"),
            rows=tuple(_row(one, asked) for one in rows),
        ),
        after=what_if_notes(answer),
    )


def what_if_notes(answer: ProbeAnswer) -> tuple[str, ...]:
    """Return how changes were computed, what to type for the best, and which are refused."""
    asked, *changed = ranked(answer)
    notes = [
        (
            "Each is a recording of its own, replayed. The largest batch as asked was recorded; "
            "those of changes are where the program of two recordings ends."
        )
    ]
    saving = [one for one in changed if not one.refusal and _saved(one, asked) > 0]
    if saving:
        notes.append(f"For the first: {saving[0].options}")
    return (*notes, *(f"{change_words(o, asked)}: {o.refusal}." for o in changed if o.refusal))


def change_words(one: WhatIf, asked: WhatIf) -> str:
    """Return what differs from the training as asked, such as `channels-last, fused`."""
    differing = [
        lever
        for lever in LEVERS
        if getattr(one.spec, lever.name) != getattr(asked.spec, lever.name)
    ]
    return ", ".join(_value_words(lever, one) for lever in differing) or AS_ASKED


def _value_words(lever: Lever, one: WhatIf) -> str:
    value = getattr(one.spec, lever.name)
    if lever.name == "allocator" and "expandable" in value:
        return "expandable segments"
    return lever.words(value) or f"no {lever.column.lower()}"


def saved_words(one: WhatIf, asked: WhatIf) -> str:
    """Return how much less device memory a change takes, GiB, with its sign where it takes more."""
    words = gib(abs(_saved(one, asked)))
    return f"-{words}" if _saved(one, asked) < 0 and float(words) else words


def _saved(one: WhatIf, asked: WhatIf) -> int:
    return asked.device_used_peak_bytes - one.device_used_peak_bytes


def _row(one: WhatIf, asked: WhatIf) -> tuple[str, ...]:
    name = change_words(one, asked)
    if one.refusal:
        return (name, "-", "-", "no", "-", "-")
    return (
        name,
        gib(one.device_used_peak_bytes),
        "" if one is asked else saved_words(one, asked),
        "yes" if one.fits else "no",
        str(one.largest_batch),
        three_digits(one.images_per_second),
    )
