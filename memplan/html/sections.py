"""Sections as HTML: the sentences, numbers and tables of the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from memplan.html.markup import text
from memplan.present.section import Number, Section, Table
from memplan.report.series import bands_of
from memplan.units import format_bytes


def numbers_html(numbers: Sequence[Number]) -> str:
    """Return the few numbers that an answer is known by, large."""
    cells = [
        f"<div><dd>{text(one.value)}</dd><dt>{text(one.label)}"
        + (f"<small>{text(one.detail)}</small>" if one.detail else "")
        + "</dt></div>"
        for one in numbers
    ]
    return f'<dl class="numbers">{"".join(cells)}</dl>' if cells else ""


def sections_html(sections: Sequence[Section]) -> Iterator[str]:
    """Yield sections in the order they are read; those of one title in a row share the heading."""
    last = ""
    for section in sections:
        if section.title != last:
            yield f"<h3>{text(section.title)}</h3>"
        last = section.title
        yield from (f"<p>{text(line.strip())}</p>" for line in section.sentences if line.strip())
        if section.table is not None:
            yield table_html(section.table)
        yield from (f"<p>{text(line.strip())}</p>" for line in section.after)


def table_html(table: Table) -> str:
    """Return a table that scrolls within itself where the screen is narrower."""

    def row(cells: Sequence[str], tag: str) -> str:
        made = [
            f"<{tag}{_classes(column, table.left)}>{text(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(made)}</tr>"

    caption = f"<caption>{text(table.caption)}</caption>" if table.caption else ""
    head = f"<thead>{row(table.header, 'th')}</thead>" if any(table.header) else ""
    body = "".join(row(cells, "td") for cells in table.rows)
    label = text(table.caption or " ".join(table.header) or "Table")
    return (
        f'<div class="scrolls" tabindex="0" role="region" aria-label="{label}">'
        f"<table>{caption}{head}<tbody>{body}</tbody></table></div>"
    )


def _classes(column: int, left: int) -> str:
    return "" if column < left else ' class="n"'


def bar_html(categories: Mapping[str, int]) -> str:
    """Return the categories of one moment as a bar with its key; nothing of nothing."""
    bands = bands_of(categories)
    total = sum(num_bytes for _, num_bytes in bands)
    if not total:
        return ""
    words = ", ".join(f"{band.label} {format_bytes(size)}" for band, size in bands)
    parts, keys, at = [], [], 0.0
    for band, size in bands:
        width = 100 * size / total
        parts.append(
            f'<rect x="{at:.3f}" y="0" width="{width:.3f}" height="8" fill="{band.fill}" '
            'stroke="#fff" stroke-width="0.15"/>'
        )
        keys.append(
            f'<li><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" '
            f'fill="{band.fill}" stroke="#4d4d4d"/></svg>{text(band.label)} '
            f"{text(format_bytes(size))}</li>"
        )
        at += width
    return (
        f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(f"At the peak: {words}")}">{"".join(parts)}</svg>'
        f'<ul class="key">{"".join(keys)}</ul>'
    )
